"""Run directories: nothing is overwritten unasked, everything is written whole or not at all."""

import contextlib
import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from certood.errors import CheckpointError, RunDirectoryError
from certood.files import write_atomically
from certood.runs import RunDirectory
from certood.runs.directory import Part
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


def test_overwriting_is_done_beside_the_old_files_and_never_in_another_folder(
    run: RunDirectory, recipe: Recipe, tmp_path: Path
) -> None:
    place = run_directory.prepare_run(run, recipe, resume=False, overwrite=True)
    assert place == run.replacement(Part.TRAINING)
    assert run_directory.read_run_recipe(run) == recipe
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").touch()
    # A recipe that the user wrote makes no run of a folder.
    (precious / "recipe.toml").write_text(tomli_w.dumps(recipe.to_toml()))
    with pytest.raises(RunDirectoryError, match="it is not a run"):
        run_directory.prepare_run(RunDirectory(precious), recipe, resume=False, overwrite=True)
    assert sorted(path.name for path in precious.iterdir()) == ["chapter.tex", "recipe.toml"]


def test_there_must_be_something_to_resume(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"there is no run in .* to resume; leave out --resume"):
        run_directory.prepare_run(RunDirectory(tmp_path / "none"), recipe, resume=True, overwrite=False)
    assert not (tmp_path / "none").exists()


def test_images_that_have_changed_since_are_not_trained_on(run: RunDirectory, recipe: Recipe) -> None:
    with pytest.raises(RunDirectoryError, match="id-train has changed since"):
        run_directory.prepare_run(run, recipe, resume=True, overwrite=False, fingerprints={"id-train": "abd"})
    assert run.recipe_tables()["record"]["sha256"] == {"id-train": "abc"}


def test_a_complete_replacement_takes_its_place_whenever_the_process_was_killed(
    run: RunDirectory, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before any step of the exchange, and the next writer ends with the new files, and the user's own."""

    class Killed(BaseException):
        pass

    def fill() -> None:
        for path in (*run.files(Part.TRAINING), run.certificates, run.figures / "roc.png", run.figures / "mine.png"):
            path.parent.mkdir(exist_ok=True)
            path.write_text("old")
        new = run.replacement(Part.TRAINING)
        new.folder.mkdir(exist_ok=True)
        for path in new.files(Part.TRAINING)[:3]:
            path.write_text("new")

    originals = {name: getattr(Path, name) for name in ("replace", "unlink", "write_bytes", "rmdir", "touch")}
    step, reached = 0, True
    while reached:
        fill()
        calls, reached = 0, False

        def counted(name: str, last: int = step) -> Callable[..., Any]:
            def call(*arguments: Any, **extra: Any) -> Any:
                nonlocal calls, reached
                calls += 1
                if calls > last:
                    reached = True
                    raise Killed
                return originals[name](*arguments, **extra)

            return call

        with monkeypatch.context() as patch:
            for name in originals:
                patch.setattr(Path, name, counted(name))
            with contextlib.suppress(Killed):
                run.adopt(Part.TRAINING)
        new = run.replacement(Part.TRAINING)
        committed = new.finished.is_file() or not new.folder.exists()
        with run.writing("train"):
            pass
        found = [path.read_text() if path.exists() else "" for path in run.files(Part.TRAINING)]
        assert found == (["new", "new", "new", "", ""] if committed else ["old"] * 5), step
        if committed:
            assert not run.certificates.exists()
            assert [path.name for path in run.figures.iterdir()] == ["mine.png"]
            assert not run.replacement(Part.TRAINING).folder.exists()
        step += 1
    assert step > 10


def test_what_a_killed_process_left_of_a_file_is_removed(run: RunDirectory) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (run.folder / f".kept.txt.{process.pid}.partial").touch()
    (run.folder / f".other.txt.{os.getppid()}.partial").touch()
    write_atomically(run.folder / "kept.txt", "new")
    assert [path.name for path in run.folder.glob(".*.partial")] == [f".other.txt.{os.getppid()}.partial"]


def test_resume_wants_the_same_recipe_but_not_the_same_machine(run: RunDirectory, recipe: Recipe) -> None:
    run_directory.prepare_run(run, recipe, resume=True, overwrite=False)
    run_directory.prepare_run(run, load_recipe("digits-ce", ["run.device=cpu"]), resume=True, overwrite=False)
    other = load_recipe("digits-ce", ["training.epochs=99", "run.seed=3"])
    with pytest.raises(
        RunDirectoryError, match=r"another recipe \(run.seed: 0 there, 3 here; training.epochs: 40 there, 99 here\)"
    ):
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
    cpu = torch.device("cpu")
    assert run_directory.load_state(run, cpu, 3) is None
    whole: dict[str, Any] = {
        "epochs_done": 2,
        "rows": [{"epoch": 1}, {"epoch": 2}],
        "network": {"w": torch.arange(3)},
        "optimiser": {},
        "schedule": {},
    }
    run_directory.save_state(run, whole)
    state = run_directory.load_state(run, cpu, 3)
    assert state is not None
    assert state["epochs_done"] == 2
    for wrong in (
        {"epochs_done": 99},
        {"epochs_done": True},
        {"epochs_done": 0},
        {"rows": [{"epoch": 2}]},
        {"rows": 1},
    ):
        run_directory.save_state(run, whole | wrong)
        with pytest.raises(CheckpointError, match="is damaged"):
            run_directory.load_state(run, cpu, 3)
    run_directory.save_state(run, {"epochs_done": 2})
    with pytest.raises(CheckpointError, match="expected epochs_done, rows, network, optimiser, schedule"):
        run_directory.load_state(run, cpu, 3)
    path = run.training_state
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        run_directory.load_state(run, cpu, 3)


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
