"""Runs of several seeds: each is the run of its seed, and the same command continues."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from certood.cli import main
from certood.errors import RecipeError, RunDirectoryError
from certood.runs import RunDirectory
from certood.runs.kinds import changed_inputs, kind_of
from certood.train import epoch
from certood.train.continuing import inputs_of, is_finished, parse_seeds, runs_of_seeds
from certood.train.loop import fit
from certood.train.recipe import load_recipe
from certood.train.run_directory import load_state

SHORT = ("--set", "training.epochs=1", "--set", "training.steps_per_epoch=2", "--device", "cpu")


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["train", "digits-ce", *SHORT, *map(str, arguments)])


@pytest.mark.parametrize(
    ("text", "expected"), [("0-2", [0, 1, 2]), ("3", [3]), ("0-1, 7,1", [0, 1, 7]), ("9-9", [9]), ("4,0", [4, 0])]
)
def test_seeds_are_read(text: str, expected: list[int]) -> None:
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "2-0", "-1", "0-", "0-1000000", "1.5", "0,,1", "0-999,1000"])
def test_what_names_no_seeds_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="seeds"):
        parse_seeds(text)


def test_every_run_is_the_run_of_its_seed_and_finished_ones_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "ce"
    first = train("--out", out, "--seeds", "0,2")
    assert first.exit_code == 0, first.output
    settings = ("training.epochs=1", "training.steps_per_epoch=2", "run.device=cpu")
    fit(load_recipe("digits-ce", (*settings, "run.seed=2")), tmp_path / "alone", progress=False)
    states = [load_state(RunDirectory(tmp_path / name), torch.device("cpu"), 1) for name in ("ce-0", "ce-2", "alone")]
    zero, two, alone = (list(state["network"].values()) for state in states if state is not None)
    assert all(torch.equal(one, other) for one, other in zip(two, alone, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(two, zero, strict=True))
    results = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("ce-0", "ce-2")]
    lines = [line for line in first.output.splitlines() if "mean FPR95" in line]
    for result, line in zip(results, lines, strict=True):
        assert f"accuracy {100 * result['accuracy']:.1f} %" in line
    before = (tmp_path / "ce-0" / "checkpoint.safetensors").stat().st_mtime_ns
    second = train("--out", out, "--seeds", "0-2")
    assert second.exit_code == 0, second.output
    assert second.output.count("(trained before)") == 2
    assert (tmp_path / "ce-0" / "checkpoint.safetensors").stat().st_mtime_ns == before
    assert is_finished(load_recipe("digits-ce", (*settings, "run.seed=1")), tmp_path / "ce-1")
    # All are tested on the same images.
    recorded = [RunDirectory(tmp_path / f"ce-{seed}").recipe_tables()["record"]["sha256"] for seed in range(3)]
    assert recorded[0] == recorded[1] == recorded[2]


def test_a_seed_that_belongs_to_another_recipe_stops_everything_first(tmp_path: Path) -> None:
    fit(load_recipe("digits-ce", ("training.epochs=1", "training.steps_per_epoch=1")), tmp_path / "a-1", progress=False)
    found = train("--out", tmp_path / "a", "--seeds", "0-1")
    assert found.exit_code == 2
    assert "was trained with another recipe" in found.output
    assert not (tmp_path / "a-0").exists()
    with pytest.raises(RunDirectoryError, match="another recipe"):
        runs_of_seeds(load_recipe("digits-energy"), tmp_path / "a", [1])


def test_what_a_stopped_overwrite_has_left_goes_on_and_the_run_before_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "ce"
    assert train("--out", out, "--seeds", "0").exit_code == 0
    longer = ("--out", out, "--seeds", "0", "--set", "training.epochs=3")

    def stopped(training: epoch.Training) -> tuple[float, float, float]:
        if training.epochs_done == 1:
            raise KeyboardInterrupt
        return probe(training)

    probe = epoch.probe
    monkeypatch.setattr(epoch, "probe", stopped)
    first = train(*longer, "--overwrite")
    assert first.exit_code == 130
    assert "go on with --overwrite and --seeds of those that are not printed above" in first.output
    monkeypatch.setattr(epoch, "probe", probe)
    second = train(*longer)
    assert second.exit_code == 0, second.output
    assert "(trained before)" not in second.output
    assert RunDirectory(tmp_path / "ce-0").recipe_tables()["training"]["epochs"] == 3
    assert len((tmp_path / "ce-0" / "training.csv").read_text().splitlines()) == 4
    assert "(trained before)" in train(*longer).output
    # A replacement of the same recipe goes on as well.
    monkeypatch.setattr(epoch, "probe", stopped)
    assert train(*longer, "--overwrite").exit_code == 130
    monkeypatch.setattr(epoch, "probe", probe)
    before = (tmp_path / "ce-0" / "checkpoint.safetensors").stat().st_mtime_ns
    assert "(trained before)" not in train(*longer).output
    assert (tmp_path / "ce-0" / "checkpoint.safetensors").stat().st_mtime_ns > before


def test_foreign_weights_are_read_as_the_recipes_model_so_that_their_hash_belongs_to_it() -> None:
    recorded = {"training.init": "a", "id-train": "b", "npz:ood.npz": "c", "id-test": "d"}
    settings = [[f"model.mean=[{mean}]", "model.std=[0.3]", "training.init=x.safetensors"] for mean in (0.1, 0.2)]
    one, two = (inputs_of(load_recipe("digits-energy", changes), recorded) for changes in settings)
    assert {name for name, _ in one} == {"training.init", "id-train"}
    assert {name for name, _ in one.keys() & two.keys()} == {"id-train"}


def test_outliers_or_a_start_that_have_changed_since_the_first_seeds_are_an_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def outliers() -> None:
        np.savez(tmp_path / "noise.npz", images=generator.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))

    def start(seed: int) -> None:
        fit(
            load_recipe("digits-ce", (*settings, f"run.seed={seed}")),
            tmp_path / "start",
            overwrite=True,
            progress=False,
        )

    def seeds(text: str) -> Result:
        arguments = ("--init", tmp_path / "start", "--set", f"data.auxiliary=npz:{tmp_path}/noise.npz")
        return CliRunner().invoke(
            main,
            list(map(str, ["train", "digits-energy", *SHORT, *arguments, "--out", tmp_path / "e", "--seeds", text])),
        )

    settings = ("training.epochs=1", "training.steps_per_epoch=2", "run.device=cpu")
    start(0)
    outliers()
    assert seeds("0").exit_code == 0
    kept = (tmp_path / "noise.npz").read_bytes()
    outliers()
    refused = seeds("0-1")
    assert refused.exit_code == 2
    assert f"noise.npz is not for what is to be trained what it was for {tmp_path}/e-0" in refused.output
    (tmp_path / "noise.npz").write_bytes(kept)
    start(1)
    refused = seeds("0-1")
    assert refused.exit_code == 2
    assert f"training.init is not for what is to be trained what it was for {tmp_path}/e-0" in refused.output
    assert "arm" not in refused.output
    # A run that has not finished an epoch does not go on from another start either.
    (tmp_path / "e-0").rename(tmp_path / "e-1")
    for name in ("checkpoint.safetensors", "evaluation.json", "training_state.pt", "training.csv"):
        (tmp_path / "e-1" / name).unlink()
    with pytest.raises(RunDirectoryError, match=r"training\.init has changed"):
        fit(load_recipe(str(tmp_path / "e-1" / "recipe.toml")), tmp_path / "e-1", resume=True, progress=False)
    # Runs of both starts, of whatever command, are no seeds of one arm.
    (tmp_path / "e-1").rename(tmp_path / "older")
    assert seeds("0-1").exit_code == 0
    one, two, older = (RunDirectory(tmp_path / name).recipe_tables() for name in ("e-0", "e-1", "older"))
    assert kind_of(one) == kind_of(two) == kind_of(older)
    assert changed_inputs(one, two) == []
    assert changed_inputs(one, older) == ["training.init"]
    del older["record"]["sha256"]["training.init"]
    assert changed_inputs(one, older) == []


@pytest.mark.parametrize("other", [("--seed", "1"), ("--resume",)])
def test_seeds_go_with_no_other_seed_and_are_resumed_anyway(other: tuple[str, ...], tmp_path: Path) -> None:
    found = train("--out", tmp_path / "a", "--seeds", "0", *other)
    assert found.exit_code == 2
    assert "leave out --seed and --resume" in found.output
    found = train("--out", tmp_path / "a", "--seeds", "0", "--set", "run.seed=7")
    assert found.exit_code == 2
    assert "leave out --set run.seed" in found.output
    assert not (tmp_path / "a-0").exists()


def test_runs_without_ood_sets_are_told_by_their_accuracy(tmp_path: Path) -> None:
    found = train("--out", tmp_path / "a", "--seeds", "0", "--set", "data.ood=[]")
    assert found.exit_code == 0, found.output
    assert re.search(r"a-0: accuracy [\d.]+ %$", found.output, re.MULTILINE)
    refused = CliRunner().invoke(main, ["compare", str(tmp_path / "a-0")])
    assert refused.exit_code == 2
    assert "was evaluated on no OOD set" in refused.output
