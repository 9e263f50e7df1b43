"""run.precision = "auto": what is fast on the device, said, recorded, and repeated wherever the run goes on."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch.amp import GradScaler

from certood import devices
from certood.cli import main
from certood.devices import chosen_precision, short_products
from certood.errors import DeviceError
from certood.runs import RunDirectory
from certood.runs.kinds import kind_of
from certood.train import automatic, loop, setup
from certood.train.continuing import is_finished
from certood.train.loop import fit
from certood.train.recipe import Recipe, load_recipe
from certood.train.recipe_tables import RunSection
from tests.train.interruption import interrupted_after

CPU = torch.device("cpu")
SHORT = ("training.epochs=2", "training.steps_per_epoch=2", "run.device=cpu", "model.options.width=4")


def recipe(precision: str = "auto") -> Recipe:
    return load_recipe("digits-ce", [*SHORT, f"run.precision={precision}"])


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.mark.usefixtures("fast")
def test_a_processor_with_short_products_trains_in_them() -> None:
    assert short_products(CPU) == "processor with AMX"
    assert chosen_precision("auto", CPU) == "bf16-mixed"
    assert chosen_precision("32-true", CPU) == "32-true"
    # Fabric would train in bfloat16, and the recipe say something else.
    with pytest.raises(DeviceError, match="'16-mixed', and float16 is for GPUs: use 'bf16-mixed'"):
        chosen_precision("16-mixed", CPU)
    assert chosen_precision("16-mixed", torch.device("cuda")) == "16-mixed"


@pytest.mark.usefixtures("slow")
def test_another_processor_trains_in_32_bits_and_refuses_bfloat16(tmp_path: Path) -> None:
    assert chosen_precision("auto", CPU) == chosen_precision("auto", torch.device("mps")) == "32-true"
    out = tmp_path / "run"
    with pytest.raises(
        DeviceError, match=r"'bf16-mixed', and this cpu device has no fast products of bfloat16: use '32-true'"
    ):
        fit(recipe("bf16-mixed"), out, progress=False)
    assert not out.exists()


def test_what_was_chosen_is_recorded_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    out, seen = tmp_path / "run", []
    build = setup.Fabric

    def noted(*arguments: object, precision: str, **more: object) -> object:
        seen.append(precision)
        return build(*arguments, precision="32-true", **more)  # type: ignore[arg-type]

    monkeypatch.setattr(setup, "Fabric", noted)
    with monkeypatch.context() as patch:
        patch.setattr(devices, "short_products", lambda _: "processor with AMX")
        patch.setattr(automatic, "short_products", lambda _: "processor with AMX")
        fit(recipe(), out, progress=False)
    tables = RunDirectory(out).recipe_tables()
    assert tables["run"]["precision"] == "bf16-mixed"
    result = CliRunner().invoke(main, ["recipe", "explain", str(out)])
    assert result.output == "run.precision = bf16-mixed: processor with AMX.\n"
    # Elsewhere the run is finished all the same, is of one kind with runs there, and goes on in its own precision.
    request.getfixturevalue("slow")
    assert is_finished(recipe(), out)
    other = tmp_path / "other"
    fit(recipe(), other, progress=False)
    assert RunDirectory(other).recipe_tables()["run"]["precision"] == "32-true"
    assert kind_of(tables) == kind_of(RunDirectory(other).recipe_tables())
    monkeypatch.setattr(devices, "short_products", lambda _: "another")
    fit(recipe(), out, resume=True, progress=False)
    assert seen == ["bf16-mixed", "32-true", "bf16-mixed"]


def test_an_interrupted_replacement_goes_on_in_its_own_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for name in ("chosen_precision", "short_products"):
        monkeypatch.setattr(
            automatic, name, lambda *_, name=name: "bf16-mixed" if name == "chosen_precision" else "AMX"
        )
    build = setup.Fabric
    monkeypatch.setattr(setup, "chosen_precision", lambda precision, _: precision)
    monkeypatch.setattr(setup, "Fabric", lambda *a, **k: build(*a, **{**k, "precision": "32-true"}))
    fit(recipe(), out, progress=False)
    monkeypatch.setattr(automatic, "chosen_precision", lambda *_: "32-true")
    with interrupted_after(1):
        fit(recipe(), out, overwrite=True, progress=False)
    assert RunDirectory(out).recipe_tables()["run"]["precision"] == "bf16-mixed"
    fit(recipe(), out, resume=True, progress=False)
    assert RunDirectory(out).recipe_tables()["run"]["precision"] == "32-true"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command_line_asks_for_it(tmp_path: Path) -> None:
    arguments = ["train", "digits-ce", "--precision", "auto", "--out", str(tmp_path / "run")]
    for setting in SHORT:
        arguments += ["--set", setting]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    tables = RunDirectory(tmp_path / "run").recipe_tables()
    assert tables["record"]["auto"]["run.precision"]["value"] == tables["run"]["precision"]


def test_the_scale_of_losses_in_float16_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalers: list[GradScaler] = []

    def float16(run: RunSection) -> Fabric:
        scalers.append(GradScaler("cpu", init_scale=256.0, growth_interval=2))
        return Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scalers[-1])])

    monkeypatch.setattr(loop, "build_fabric", float16)
    with interrupted_after(1):
        fit(recipe("32-true"), tmp_path / "run", progress=False)
    fit(recipe("32-true"), tmp_path / "run", resume=True, progress=False)
    # It doubles after each two steps that did not overflow: twice in the two epochs, of which the second run made one.
    assert [scaler.get_scale() for scaler in scalers] == [1024.0, 1024.0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_state_of_an_earlier_version_is_resumed(precision: str, tmp_path: Path) -> None:
    """Without the state of the precision, which those two have none of, and of the trackers."""
    wanted = recipe(precision)
    whole = fit(wanted, tmp_path / "whole", progress=False)
    with interrupted_after(1):
        fit(wanted, tmp_path / "run", progress=False)
    path = tmp_path / "run" / "training_state.pt"
    state = torch.load(path, weights_only=True)
    assert state.pop("precision") == {}
    assert state.pop("told") == {}
    torch.save(state, path)
    resumed = fit(wanted, tmp_path / "run", resume=True, progress=False)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
