"""What training keeps in a run directory: its recipe, its state, its rows; made or resumed with care."""

import csv
import io
import platform
from collections.abc import Mapping
from typing import Any

import tomli_w
import torch

from certood import __version__
from certood.errors import CheckpointError, RecipeError, RunDirectoryError
from certood.files import write_atomically
from certood.runs import RunDirectory
from certood.runs.directory import Part
from certood.runs.kinds import WHERE, automatic, recorded_hashes, tracker_runs
from certood.runs.tables import described, differing_keys, flat_keys
from certood.train.recipe import Recipe, make_recipe

TRAINING_COLUMNS = (
    "epoch",
    "loss",
    "cross_entropy",
    "outlier",
    "gradient",
    "certified",
    "gradient_norm_in",
    "gradient_norm_out",
    "accuracy",
    "eps",
    "auroc_auxiliary",
    "score_deviation",
    "learning_rate",
    "seconds",
)

STATE_KEYS = ("epochs_done", "rows", "network", "optimiser", "schedule")


def prepare_run(
    run: RunDirectory,
    recipe: Recipe,
    *,
    resume: bool,
    overwrite: bool,
    fingerprints: Mapping[str, str] | None = None,
) -> RunDirectory:
    """Where to train: the folder of a run, or, where one is overwritten, the hidden folder that replaces it when complete.

    Raises RunDirectoryError where a run exists and neither was asked for, where what would be overwritten is not a run, where
    there is nothing to resume, where the recipe to resume, its image sets or the weights that it started from (`fingerprints`,
    SHA-256 by name) differ, or where the folder cannot be written.
    """
    check_run(run, recipe, resume=resume, overwrite=overwrite)
    place = run
    if resume:
        place = resumed(run, recipe)
        _require_same_inputs(place, fingerprints or {})
    else:
        run.discard_replacement(Part.TRAINING)
        if any(path.exists() for path in run.files(Part.TRAINING)):
            place = run.replacement(Part.TRAINING)
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write the run directory {place.folder}: {error.strerror or error}") from error
    return place


def check_run(run: RunDirectory, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Raise RunDirectoryError where `prepare_run` would for the folder or the recipe; nothing is written."""
    out = run.folder
    if run.empty:
        if resume:
            raise RunDirectoryError(f"there is no run in {out} to resume; leave out --resume to start one")
        return
    if not resume and not overwrite:
        raise RunDirectoryError(
            f"{out} exists already; continue it with --resume, replace it with --overwrite, or choose another --out"
        )
    if resume:
        found = resumed(run, recipe)
        differing = _differing(found, recipe)
        if differing:
            there, here = flat_keys(read_run_recipe(found).to_toml()), flat_keys(recipe.to_toml())
            raise RunDirectoryError(
                f"{out} was trained with another recipe ({described(there, here, differing)}); "
                "resume with the same settings, or choose another --out"
            )
    elif "certood" not in run.recipe_tables().get("record", {}):
        raise RunDirectoryError(
            f"{out} holds files but no {run.recipe.name} of a run: it is not a run, and is left as it is"
        )


def resumed(run: RunDirectory, recipe: Recipe) -> RunDirectory:
    """The run to go on with: an unfinished replacement of the same recipe, otherwise the run itself."""
    replacement = run.replacement(Part.TRAINING)
    if replacement.recipe.is_file() and not _differing(replacement, recipe):
        return replacement
    if not run.recipe.is_file():
        raise RunDirectoryError(
            f"{run.folder} has no {run.recipe.name}, so what was trained there is not known; choose another --out"
        )
    return run


def _differing(run: RunDirectory, recipe: Recipe) -> list[str]:
    """The keys in which the recipe of a run differs from one; "auto" is what the run took for it."""
    settled = automatic(run.recipe_tables())
    found = different_keys(read_run_recipe(run), recipe)
    return [key for key in found if not (key in recipe.open_keys and key in settled)]


def _require_same_inputs(run: RunDirectory, fingerprints: Mapping[str, str]) -> None:
    recorded = recorded_hashes(run.recipe_tables())
    changed = sorted(name for name, found in fingerprints.items() if recorded.get(name, found) != found)
    if changed:
        raise RunDirectoryError(
            f"{', '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed since {run.folder} was trained; restore "
            f"{'it' if len(changed) == 1 else 'them'}, or train again (certood train --overwrite, or remove the folder)"
        )


def read_run_recipe(run: RunDirectory) -> Recipe:
    """The resolved recipe stored in a run directory; raises RunDirectoryError where it cannot be read."""
    tables = run.recipe_tables()
    tables.pop("record", None)
    try:
        return make_recipe(tables)
    except RecipeError as error:
        raise RunDirectoryError(f"{run.recipe}: {error}") from error


def different_keys(first: Recipe, second: Recipe) -> list[str]:
    """Dotted keys in which two recipes differ, except where they run and whom they told (`WHERE`)."""
    found = differing_keys(flat_keys(first.to_toml()), flat_keys(second.to_toml()))
    return [key for key in found if key not in WHERE]


def write_recipe(
    run: RunDirectory,
    recipe: Recipe,
    fingerprints: Mapping[str, str],
    auto: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write recipe.toml: the resolved recipe, and a record of versions and of the SHA-256 of each image set.

    `auto` says how numbers came about that were asked for as "auto".
    """
    tables = recipe.to_toml()
    tables["record"] = {
        "certood": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "sha256": dict(fingerprints),
    }
    if auto:
        tables["record"]["auto"] = auto
    write_atomically(run.recipe, tomli_w.dumps(tables).encode())


def record_trackers(run: RunDirectory, runs: Mapping[str, str]) -> None:
    """Add to the record of recipe.toml by what names trackers know the run, so that a resumed one goes on there."""
    tables = run.recipe_tables()
    known = tracker_runs(tables)
    if not runs.items() <= known.items():
        tables.setdefault("record", {})["trackers"] = known | dict(runs)
        write_atomically(run.recipe, tomli_w.dumps(tables).encode())


def save_state(run: RunDirectory, state: Mapping[str, Any]) -> None:
    """Write the state from which training resumes, atomically; raises RunDirectoryError where it cannot."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_atomically(run.training_state, content.getvalue())


def load_state(run: RunDirectory, device: torch.device, epochs: int) -> dict[str, Any] | None:
    """The state from which training of so many epochs resumes, or None where it had not finished one.

    Raises CheckpointError where the file is damaged.
    """
    path = run.training_state
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or not set(STATE_KEYS) <= state.keys():
            raise ValueError(f"expected {', '.join(STATE_KEYS)}")
        done, rows = state["epochs_done"], state["rows"]
        if type(done) is not int or not 0 < done <= epochs:
            raise ValueError(f"epochs_done is {done!r}, expected 1 to {epochs}")
        if not isinstance(rows, list) or [row["epoch"] for row in rows] != list(range(1, done + 1)):
            raise ValueError(f"expected a row for each of {done} epochs")
        told = state.get("told", {})
        if not isinstance(told, dict) or not all(type(count) is int and 0 <= count <= done for count in told.values()):
            raise ValueError(f"expected for every tracker of how many of {done} epochs it was told, found {told!r:.60}")
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged ({' '.join(str(error).split())[:200]}); start again with --overwrite"
        ) from error
    return state


def write_rows(run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    """Write training.csv: a row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, TRAINING_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(run.training, text.getvalue().encode())
