"""Runs of several seeds: each is the run of its seed, and the same command continues."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from certood.cli import main
from certood.errors import RecipeError, RunDirectoryError
from certood.runs import RunDirectory
from certood.train.continuing import is_finished, parse_seeds, runs_of_seeds
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


@pytest.mark.parametrize("other", [("--seed", "1"), ("--resume",)])
def test_seeds_go_with_no_other_seed_and_are_resumed_anyway(other: tuple[str, ...], tmp_path: Path) -> None:
    found = train("--out", tmp_path / "a", "--seeds", "0", *other)
    assert found.exit_code == 2
    assert "leave out --seed and --resume" in found.output
