"""The folder of a run: made or resumed with care, its files written atomically."""

import csv
import io
import platform
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch

from certood import __version__
from certood.errors import CheckpointError, RecipeError, RunDirectoryError
from certood.files import replacing, write_atomically
from certood.train.recipe import Recipe, make_recipe

RECIPE_FILE = "recipe.toml"

STATE_FILE = "training_state.pt"
TRAINING_FILE = "training.csv"

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


def prepare_run(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Make the folder of a run, or check that the one that exists may be resumed or overwritten.

    Raises RunDirectoryError where it exists and neither was asked for, where what would be overwritten is not a run,
    where the recipe to resume differs, or where the folder cannot be written.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            _check_existing(out, recipe, resume=resume, overwrite=overwrite)
            if overwrite and not resume:
                shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunDirectoryError(f"cannot write the run directory {out}: {error.strerror or error}") from error


def _check_existing(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    stored = out / RECIPE_FILE
    if not resume and not overwrite:
        raise RunDirectoryError(
            f"{out} exists already; continue it with --resume, replace it with --overwrite, or choose another --out"
        )
    if not stored.is_file():
        if resume and (out / STATE_FILE).exists():
            raise RunDirectoryError(
                f"{out} has no {RECIPE_FILE}, so what was trained there is not known: use --overwrite"
            )
        if overwrite and not resume:
            raise RunDirectoryError(f"{out} holds files but no {RECIPE_FILE}: it is not a run, and is left as it is")
        return
    if resume:
        differing = different_keys(read_run_recipe(out), recipe)
        if differing:
            raise RunDirectoryError(
                f"{out} was trained with another recipe ({', '.join(differing)} differ); "
                "resume with the same settings, or choose another --out"
            )


def read_run_recipe(out: Path) -> Recipe:
    """The resolved recipe stored in a run directory; raises RunDirectoryError where it cannot be read."""
    try:
        tables = tomllib.loads((out / RECIPE_FILE).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RunDirectoryError(f"cannot read {out / RECIPE_FILE}: {error}") from error
    tables.pop("record", None)
    try:
        return make_recipe(tables)
    except RecipeError as error:
        raise RunDirectoryError(f"{out / RECIPE_FILE}: {error}") from error


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


def write_recipe(out: Path, recipe: Recipe, fingerprints: Mapping[str, str]) -> None:
    """Write recipe.toml: the resolved recipe, and a record of versions and of the SHA-256 of each image set."""
    tables = recipe.to_toml()
    tables["record"] = {
        "certood": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "sha256": dict(fingerprints),
    }
    write_atomically(out / RECIPE_FILE, tomli_w.dumps(tables).encode())


def save_state(out: Path, state: Mapping[str, Any]) -> None:
    """Write the state from which training resumes, atomically."""
    try:
        with replacing(out / STATE_FILE) as temporary:
            torch.save(dict(state), temporary)
    except (OSError, RuntimeError) as error:
        raise RunDirectoryError(f"cannot write {out / STATE_FILE}: {error}") from error


def load_state(out: Path, device: torch.device) -> dict[str, Any] | None:
    """The state from which training resumes, or None where training had not finished an epoch.

    Raises CheckpointError where the file is damaged.
    """
    path = out / STATE_FILE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or "epochs_done" not in state:
            raise ValueError("it has no epochs_done")
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({error}); start again with --overwrite") from error
    return state


def write_rows(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write training.csv: a row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, TRAINING_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / TRAINING_FILE, text.getvalue().encode())
