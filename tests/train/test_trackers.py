"""Trackers: what services keep of a run, read back from their own files; a resumed run goes on in theirs."""

import csv
import json
import shutil
import struct
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner

from certood.cli import main
from certood.errors import CertoodError, CheckpointError, RecipeError
from certood.runs.kinds import kind_of
from certood.runs.tables import flat_keys
from certood.train import loop
from certood.train.loop import fit
from certood.train.recipe import Recipe, load_recipe, make_recipe
from certood.train.trackers import TRACKERS
from certood.train.trackers.base import Tracker
from certood.train.trackers.mlflow import accepted_name
from certood.train.tracking import figures

SHORT = ["training.epochs=3", "training.steps_per_epoch=2", "run.device=cpu", "model.options.width=2"]


def recipe(*trackers: str) -> Recipe:
    return load_recipe("digits-ce", [*SHORT, f"run.trackers={json.dumps(trackers)}"])


def rows(out: Path) -> list[dict[str, float]]:
    with (out / "training.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def cut_after(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Interrupt the run once this epoch was told."""
    real = loop.train_epoch

    def cut(training: Any, shown: Any) -> dict[str, Any]:
        if training.epochs_done == epoch:
            raise KeyboardInterrupt
        return real(training, shown)

    monkeypatch.setattr(loop, "train_epoch", cut)


def interrupted(out: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, *trackers: str) -> None:
    with monkeypatch.context() as patch:
        cut_after(patch, epoch)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe(*trackers), out, progress=False)


def interrupted_and_resumed(out: Path, monkeypatch: pytest.MonkeyPatch, *trackers: str) -> None:
    interrupted(out, monkeypatch, 2, *trackers)
    fit(recipe(*trackers), out, resume=True, progress=False)


def recorded(out: Path) -> dict[str, str]:
    found: dict[str, str] = tomllib.loads((out / "recipe.toml").read_text("utf-8"))["record"]["trackers"]
    return found


@dataclass
class Told(Tracker):
    """Keeps what it is told, of all runs of the process."""

    log: ClassVar[list[tuple[Any, ...]]] = []
    failing: ClassVar[str] = ""
    _: int = field(default=0, init=False)

    def require(self) -> None:
        if self.failing == "require":
            raise RecipeError("run.trackers has told, which is not installed: pip install told")

    def start(self, folder: Path, tables: Mapping[str, Any], known: str | None, done: int) -> str:
        self.log.append(("start", folder.name, tables["training"]["epochs"], known, done))
        return known or "first"

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        if self.failing in ("epoch", f"epoch {number}"):
            raise ConnectionError("no route\nto host")
        self.log.append(("epoch", number, dict(values)))

    def evaluated(self, epochs: int, values: Mapping[str, float]) -> None:
        self.log.append(("evaluated", epochs, dict(values)))

    def finish(self, *, failed: bool) -> None:
        if self.failing == "finish" and type(self) is Told:
            raise ConnectionError("no route")
        self.log.append(("finish", failed))


class Second(Told):
    """Another, with the same log."""

    def start(self, folder: Path, tables: Mapping[str, Any], known: str | None, done: int) -> str:
        if self.failing == "start second":
            raise ConnectionError("no route")
        return super().start(folder, tables, known, done)


@pytest.fixture
def told() -> Any:
    TRACKERS.register("told", Told)
    Told.log.clear()
    yield Told
    Told.failing = ""
    TRACKERS.unregister("told")


def test_a_tracker_is_told_the_rows_and_the_evaluation_and_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: type[Told]
) -> None:
    out = tmp_path / "mine"
    interrupted_and_resumed(out, monkeypatch, "told")
    assert [entry[:2] for entry in told.log] == [
        ("start", "mine"), ("epoch", 1), ("epoch", 2), ("finish", True),
        ("start", "mine"), ("epoch", 3), ("evaluated", 3), ("finish", False),
    ]  # fmt: skip
    assert told.log[0][2:] == (3, None, 0)
    assert told.log[4][2:] == (3, "first", 2)
    assert recorded(out) == {"told": "first"}
    values = [entry[2] for entry in told.log if entry[0] == "epoch"]
    assert values == [pytest.approx(row, nan_ok=True) for row in rows(out)]
    result = json.loads((out / "evaluation.json").read_text())
    values = told.log[6][2]
    assert values == figures(result)
    assert values["evaluation/accuracy"] == result["accuracy"]
    own = result["score"]
    assert values[f"evaluation/{own}/digits-near/fpr95"] == result["scores"][own]["sets"]["digits-near"]["fpr95"]
    assert values[f"evaluation/{own}/mean/auroc"] == result["scores"][own]["mean"]["auroc"]


def test_a_tracker_that_joins_later_is_told_all_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: type[Told]
) -> None:
    interrupted(tmp_path / "run", monkeypatch, 2)
    fit(recipe("told"), tmp_path / "run", resume=True, progress=False)
    assert told.log[0] == ("start", "run", 3, None, 0)
    assert [entry[1] for entry in told.log if entry[0] == "epoch"] == [1, 2, 3]


def test_the_last_epoch_reaches_a_tracker_that_failed_at_it(tmp_path: Path, told: type[Told]) -> None:
    told.failing = "epoch 3"
    with pytest.raises(CertoodError, match="the tracker told failed"):
        fit(recipe("told"), tmp_path / "run", progress=False)
    told.failing = ""
    told.log.clear()
    fit(recipe("told"), tmp_path / "run", resume=True, progress=False)
    assert [entry[:2] for entry in told.log] == [("start", "run"), ("epoch", 3), ("evaluated", 3), ("finish", False)]
    # A run that is done has no more to tell of its epochs, but to a tracker that joins.
    told.log.clear()
    fit(recipe("told"), tmp_path / "run", resume=True, progress=False)
    assert not [entry for entry in told.log if entry[0] == "epoch"]


def test_a_tracker_that_joins_and_fails_is_told_all_epochs_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: type[Told]
) -> None:
    interrupted(tmp_path / "run", monkeypatch, 2)
    told.failing = "epoch"
    with pytest.raises(CertoodError, match="the tracker told failed"):
        fit(recipe("told"), tmp_path / "run", resume=True, progress=False)
    told.failing = ""
    fit(recipe("told"), tmp_path / "run", resume=True, progress=False)
    assert [entry[1] for entry in told.log if entry[0] == "epoch"] == [1, 2, 3]


def test_every_tracker_is_finished_and_every_run_recorded_whichever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: type[Told]
) -> None:
    TRACKERS.register("second", Second)
    try:
        told.failing = "start second"
        with pytest.raises(CertoodError, match="the tracker second failed"):
            fit(recipe("told", "second"), tmp_path / "run", progress=False)
        assert recorded(tmp_path / "run") == {"told": "first"}
        assert told.log == [("start", "run", 3, None, 0), ("finish", True)]
        told.failing = "finish"
        told.log.clear()
        with pytest.raises(CertoodError, match="the tracker told failed"):
            fit(recipe("told", "second"), tmp_path / "run", overwrite=True, progress=False)
        assert [entry for entry in told.log if entry[0] == "finish"] == [("finish", False)]
        # What ended the run is not hidden by it.
        interrupted(tmp_path / "other", monkeypatch, 1, "told", "second")
        assert told.log[-1] == ("finish", True)
    finally:
        TRACKERS.unregister("second")


def test_the_epoch_at_which_a_score_collapsed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: type[Told]
) -> None:
    def collapsed(found: Any) -> None:
        if len(found) == 2:
            raise CertoodError("the score is nearly constant")

    monkeypatch.setattr(loop, "check_score", collapsed)
    killed_before_the_trackers(tmp_path / "run", monkeypatch)
    with pytest.raises(CertoodError, match="nearly constant"):
        fit(recipe("told"), tmp_path / "run", resume=True, progress=False)
    assert [entry[1] for entry in told.log if entry[0] == "epoch"] == [1, 2]


@pytest.mark.parametrize("damaged", [None, {"told": "x"}, {"told": 9}, {"told": True}])
def test_a_damaged_record_of_what_was_told_is_one_error(
    damaged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path / "run", monkeypatch, 1)
    state = torch.load(tmp_path / "run" / "training_state.pt", weights_only=True)
    torch.save(state | {"told": damaged}, tmp_path / "run" / "training_state.pt")
    with pytest.raises(CheckpointError, match="of how many of 1 epochs it was told"):
        fit(recipe(), tmp_path / "run", resume=True, progress=False)


def test_a_kill_between_the_state_and_the_trackers_loses_no_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: type[Told]
) -> None:
    killed_before_the_trackers(tmp_path / "run", monkeypatch)
    fit(recipe("told"), tmp_path / "run", resume=True, progress=False)
    assert [entry[1] for entry in told.log if entry[0] == "epoch"] == [1, 2, 3]


def killed_before_the_trackers(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process were gone once the state of the second epoch is stored: nothing is told or stored after it."""

    def gone(training: Any, *_: Any) -> None:
        if training.epochs_done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_tell", gone)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe("told"), out, progress=False)


def test_errors_of_trackers_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: type[Told]) -> None:
    told.failing = "epoch"
    with pytest.raises(CertoodError, match=r"the tracker told failed \(ConnectionError: no route\).*--resume"):
        fit(recipe("told"), tmp_path / "run", progress=False)
    assert len(rows(tmp_path / "run")) == 1
    assert told.log[-1] == ("finish", True)
    # Nobody need be told to go on; who is told again gets the epoch of which it was not.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    fit(recipe(), tmp_path / "run", resume=True, progress=False)
    assert len(rows(tmp_path / "run")) == 3
    told.failing = ""
    told.log.clear()
    fit(recipe("told"), tmp_path / "again", resume=True, progress=False)
    assert told.log[0] == ("start", "again", 3, "first", 0)
    assert [entry[1] for entry in told.log if entry[0] == "epoch"] == [1, 2, 3]
    values = [entry[2] for entry in told.log if entry[0] == "epoch"]
    assert values == [pytest.approx(row, nan_ok=True) for row in rows(tmp_path / "again")]
    told.failing = "require"
    monkeypatch.setattr(loop, "load_training_data", lambda *_: pytest.fail("data was read"))
    with pytest.raises(RecipeError, match="told, which is not installed"):
        fit(recipe("told"), tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_one_error_that_names_the_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    out = tmp_path / "run"
    result = CliRunner().invoke(main, ["train", "digits-ce", "--set", f"run.trackers={name}", "--out", str(out)])
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines()[-1].endswith(f"pip install 'certood[{name}]'")
    assert not out.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("wandbb", "unknown tracker 'wandbb'; did you mean 'wandb'"),
        ('["mlflow", "mlflow"]', "a tracker is named twice"),
    ],
)
def test_unknown_trackers_are_refused(value: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits-ce", [f"run.trackers={value}"])


def test_a_recipe_of_before_says_tensorboard_by_a_key_of_its_own() -> None:
    tables = recipe().to_toml()
    del tables["run"]["trackers"]
    for value in (True, False):
        old = make_recipe({**tables, "run": {**tables["run"], "tensorboard": value}})
        assert old == recipe(*["tensorboard"][:value])
    # Whoever was told, runs are of one kind.
    assert kind_of(recipe("wandb").to_toml()) == kind_of(recipe().to_toml())


def test_tensorboard_keeps_the_rows_the_recipe_and_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    interrupted_and_resumed(out, monkeypatch, "tensorboard")
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (row["epoch"], pytest.approx(row["loss"])) for row in rows(out)
    ]
    accuracy = json.loads((out / "evaluation.json").read_text())["accuracy"]
    assert events.Scalars("evaluation/accuracy")[0].value == pytest.approx(accuracy)
    (text,) = events.Tensors("recipe/text_summary")
    assert b"epochs = 3" in text.tensor_proto.string_val[0]
    # A run that replaces this one shows its own events alone.
    fit(recipe("tensorboard"), out, overwrite=True, progress=False)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


@pytest.mark.slow
def test_mlflow_and_wandb_keep_one_run_each_through_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow in a local store of SQLite; Weights & Biases offline, whose files are read by its own reader."""
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    out = tmp_path / "mine"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    interrupted_and_resumed(out, monkeypatch, "mlflow", "wandb")
    client = mlflow.MlflowClient()
    result = json.loads((out / "evaluation.json").read_text())
    ours = {row["epoch"]: row for row in rows(out)}
    (kept,) = client.search_runs([client.get_experiment_by_name("certood").experiment_id])
    assert (kept.info.run_id, kept.info.run_name, kept.info.status) == (recorded(out)["mlflow"], "mine", "FINISHED")
    parameters = flat_keys(recipe("mlflow", "wandb").to_toml())
    assert kept.data.params == {key: str(value) for key, value in parameters.items()}
    losses = [(point.step, point.value) for point in client.get_metric_history(kept.info.run_id, "loss")]
    assert losses == [(epoch, row["loss"]) for epoch, row in ours.items()]
    assert kept.data.metrics["evaluation/accuracy"] == result["accuracy"]

    history, summary, names = written_by_wandb(tmp_path)
    assert names == {recorded(out)["wandb"]}
    assert [(row["epoch"], row["loss"]) for row in history] == [(epoch, row["loss"]) for epoch, row in ours.items()]
    assert summary["evaluation/accuracy"] == result["accuracy"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "loss"),
        ("evaluation/energy/npz:a b.npz/auroc", "evaluation/energy/npz_a b.npz/auroc"),
        ("evaluation/energy/folder:/tmp/pics//auroc", "evaluation/energy/folder_/tmp/pics/auroc"),
        ("evaluation/folder:../x/./auroc", "evaluation/folder_../x/auroc"),
        ("evaluation/folder:a/../x/auroc", "evaluation/folder_a/_/x/auroc"),
        (f"evaluation/{300 * 'x'}/auroc", f"{244 * 'x'}/auroc"),
        (f"{10 * 'a'}.../{247 * 'b'}", f"_/{247 * 'b'}"),
        (".", "_"),
    ],
)
def test_names_of_sets_become_names_that_mlflow_takes(name: str, expected: str) -> None:
    validation = pytest.importorskip("mlflow.utils.validation", reason="the extra mlflow is not installed")
    found = accepted_name(name)
    assert found == expected
    validation._validate_metric_name(found)
    assert len(found) <= validation.MAX_ENTITY_KEY_LENGTH


def written_by_wandb(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], set[str]]:
    """The rows, the summary and the identifiers in the files of runs that were kept offline."""
    from wandb.proto.wandb_internal_pb2 import Record

    def named(items: Any) -> dict[str, Any]:
        return {(one.key or "/".join(one.nested_key)): json.loads(one.value_json) for one in items}

    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    names = set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for content in records(path.read_bytes()):
            record = Record.FromString(content)
            names |= {record.run.run_id} - {""}
            summary |= named(record.summary.update)
            history += [row for row in [named(record.history.item)] if "epoch" in row]
    return history, summary, names


def records(data: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB: blocks of 32 KiB of parts with a head of checksum, length and kind, after 7 bytes."""
    place, begun = 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield begun
            begun = b""
