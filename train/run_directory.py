"""What training keeps in a run directory: its recipe, its state, its rows; made or resumed with care."""

import csv
import io
import platform
import shutil
from collections.abc import Mapping
from typing import Any

import tomli_w
import torch

from certood import __version__
from certood.errors import CheckpointError, RecipeError, RunDirectoryError
from certood.files import replacing, write_atomically
from certood.runs import RunDirectory
from certood.train.recipe import Recipe, make_recipe

TRAINING_COLUMNS = (
    "epoch",
    "loss",
    "cross_entropy",
    "outlier",
    "gradient",
    "gradient_norm_in",
    "gradient_norm_out",
    "accuracy",
    "learning_rate",
    "seconds",
)


def prepare_run(run: RunDirectory, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Make the folder of a run, or check that the one that exists may be resumed or overwritten.

    Raises RunDirectoryError where it exists and neither was asked for, where what would be overwritten is not a run,
    where the recipe to resume differs, or where the folder cannot be written.
    """
    check_run(run, recipe, resume=resume, overwrite=overwrite)
    try:
        if overwrite and not resume and run.recipe.is_file():
            shutil.rmtree(run.folder)
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write the run directory {run.folder}: {error.strerror or error}") from error


def check_run(run: RunDirectory, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Raise RunDirectoryError where `prepare_run` would; nothing is written."""
    if run.empty:
        return
    out = run.folder
    if not resume and not overwrite:
        raise RunDirectoryError(
            f"{out} exists already; continue it with --resume, replace it with --overwrite, or choose another --out"
        )
    if not run.recipe.is_file():
        if resume and run.training_state.exists():
            raise RunDirectoryError(
                f"{out} has no {run.recipe.name}, so what was trained there is not known: use --overwrite"
            )
        if overwrite and not resume:
            raise RunDirectoryError(
                f"{out} holds files but no {run.recipe.name}: it is not a run, and is left as it is"
            )
        return
    if resume:
        differing = different_keys(read_run_recipe(run), recipe)
        if differing:
            raise RunDirectoryError(
                f"{out} was trained with another recipe ({', '.join(differing)} differ); "
                "resume with the same settings, or choose another --out"
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
    """Dotted keys in which two recipes differ, except where they run (`run.device`, `run.devices`, `run.nodes`)."""
    one, two = _flat(first.to_toml()), _flat(second.to_toml())
    return sorted(
        key
        for key in one.keys() | two.keys()
        if key not in ("run.device", "run.devices", "run.nodes") and one.get(key) != two.get(key)
    )


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_recipe(run: RunDirectory, recipe: Recipe, fingerprints: Mapping[str, str]) -> None:
    """Write recipe.toml: the resolved recipe, and a record of versions and of the SHA-256 of each image set."""
    tables = recipe.to_toml()
    tables["record"] = {
        "certood": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "sha256": dict(fingerprints),
    }
    write_atomically(run.recipe, tomli_w.dumps(tables).encode())


def save_state(run: RunDirectory, state: Mapping[str, Any]) -> None:
    """Write the state from which training resumes, atomically."""
    try:
        with replacing(run.training_state) as temporary:
            torch.save(dict(state), temporary)
    except (OSError, RuntimeError) as error:
        raise RunDirectoryError(f"cannot write {run.training_state}: {error}") from error


def load_state(run: RunDirectory, device: torch.device) -> dict[str, Any] | None:
    """The state from which training resumes, or None where training had not finished an epoch.

    Raises CheckpointError where the file is damaged.
    """
    path = run.training_state
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or "epochs_done" not in state:
            raise ValueError("it has no epochs_done")
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({error}); start again with --overwrite") from error
    return state


def write_rows(run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    """Write training.csv: a row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, TRAINING_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(run.training, text.getvalue().encode())
