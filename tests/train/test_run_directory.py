"""Run directories: nothing is overwritten unasked, everything is written whole or not at all."""

import csv
import os
from pathlib import Path

import pytest
import torch

from certood.errors import CheckpointError, RunDirectoryError
from certood.files import write_atomically
from certood.runs import RunDirectory
from certood.train import run_directory
from certood.train.recipe import Recipe, load_recipe


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("digits-ce")


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> RunDirectory:
    out = RunDirectory(tmp_path / "runs" / "one")
    run_directory.prepare_run(out, recipe, resume=False, overwrite=False)
    run_directory.write_recipe(out, recipe, {"id-train": "abc"})
    return out


def test_a_run_that_exists_is_left_alone(run: RunDirectory, recipe: Recipe) -> None:
    with pytest.raises(RunDirectoryError, match="exists already; continue it with --resume"):
        run_directory.prepare_run(run, recipe, resume=False, overwrite=False)
    assert run_directory.read_run_recipe(run) == recipe


def test_overwrite_replaces_a_run_but_never_another_folder(run: RunDirectory, recipe: Recipe, tmp_path: Path) -> None:
    (run.folder / "old").touch()
    run_directory.prepare_run(run, recipe, resume=False, overwrite=True)
    assert not (run.folder / "old").exists()
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").touch()
    with pytest.raises(RunDirectoryError, match="it is not a run"):
        run_directory.prepare_run(RunDirectory(precious), recipe, resume=False, overwrite=True)
    assert (precious / "chapter.tex").exists()


def test_resume_wants_the_same_recipe_but_not_the_same_machine(run: RunDirectory, recipe: Recipe) -> None:
    run_directory.prepare_run(run, recipe, resume=True, overwrite=False)
    run_directory.prepare_run(run, load_recipe("digits-ce", ["run.device=cpu"]), resume=True, overwrite=False)
    other = load_recipe("digits-ce", ["training.epochs=99", "run.seed=3"])
    with pytest.raises(RunDirectoryError, match=r"another recipe \(run.seed, training.epochs differ\)"):
        run_directory.prepare_run(run, other, resume=True, overwrite=False)


def test_a_path_that_cannot_be_a_folder_is_named(tmp_path: Path, recipe: Recipe) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(RunDirectoryError, match="cannot write the run directory"):
        run_directory.prepare_run(RunDirectory(blocked / "run"), recipe, resume=False, overwrite=False)


def test_a_damaged_recipe_is_named(run: RunDirectory) -> None:
    run.recipe.write_text("[data\n")
    with pytest.raises(RunDirectoryError, match=r"cannot read .*recipe.toml"):
        run_directory.read_run_recipe(run)


def test_state_comes_back_and_damage_is_named(run: RunDirectory) -> None:
    assert run_directory.load_state(run, torch.device("cpu")) is None
    run_directory.save_state(run, {"epochs_done": 2, "network": {"w": torch.arange(3)}})
    state = run_directory.load_state(run, torch.device("cpu"))
    assert state is not None
    assert state["epochs_done"] == 2
    path = run.training_state
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        run_directory.load_state(run, torch.device("cpu"))


def test_a_failed_write_leaves_the_old_content_and_no_rest(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.folder / "kept.txt"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirectoryError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in run.folder.iterdir() if file.name.startswith(".")] == []


def test_rows_are_read_back_by_the_csv_module(run: RunDirectory) -> None:
    row = dict.fromkeys(run_directory.TRAINING_COLUMNS, 0.5) | {"epoch": 1}
    run_directory.write_rows(run, [row, row | {"epoch": 2}])
    with run.training.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) == 0.5
