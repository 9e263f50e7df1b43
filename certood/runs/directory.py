"""A run directory: the files of one detector by name, and how they are read."""

import json
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certood.errors import RunDirectoryError
from certood.runs.lock import HOLDER_FILE, LOCK_FILE, locked


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one detector; every command finds its files here, and their names stand nowhere else.

    recipe.toml, checkpoint.safetensors, training_state.pt and training.csv come from training; evaluation.json from the clean
    benchmark; certificates.csv, certification.json, certification_settings.json and figures/ from certification.
    """

    folder: Path

    @classmethod
    def of(cls, path: Path | str) -> "RunDirectory":
        """The run directory at a path, or the one in which a checkpoint file lies."""
        path = Path(path)
        return cls(path if path.is_dir() else path.parent)

    @property
    def recipe(self) -> Path:
        """The resolved recipe, with a record of versions and image sets."""
        return self.folder / "recipe.toml"

    @property
    def checkpoint(self) -> Path:
        """The weights, and all else that makes them a detector."""
        return self.folder / "checkpoint.safetensors"

    @property
    def training_state(self) -> Path:
        """The state from which training resumes."""
        return self.folder / "training_state.pt"

    @property
    def training(self) -> Path:
        """One row per epoch."""
        return self.folder / "training.csv"

    @property
    def evaluation(self) -> Path:
        """The clean benchmark."""
        return self.folder / "evaluation.json"

    @property
    def certificates(self) -> Path:
        """One row per certified image."""
        return self.folder / "certificates.csv"

    @property
    def certification(self) -> Path:
        """Certified metrics, computed from the certificates."""
        return self.folder / "certification.json"

    @property
    def certification_settings(self) -> Path:
        """What the certificates are about, and how they are made."""
        return self.folder / "certification_settings.json"

    @property
    def figures(self) -> Path:
        """The folder of figures of the certification."""
        return self.folder / "figures"

    @property
    def report(self) -> Path:
        """The report about this run alone."""
        return self.folder / "report.html"

    @property
    def empty(self) -> bool:
        """Whether the folder is not there, or holds nothing but a lock; raises RunDirectoryError where it is not a folder."""
        try:
            return all(path.name in (LOCK_FILE, HOLDER_FILE) for path in self.folder.iterdir())
        except FileNotFoundError:
            return True
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write the run directory {self.folder}: {error.strerror or error}"
            ) from error

    @contextmanager
    def writing(self, command: str) -> Iterator[None]:
        """Hold the lock of the folder, which is made if need be; raises RunDirectoryError that names another holder."""
        with locked(self.folder, command):
            yield

    def recipe_tables(self) -> dict[str, Any]:
        """The tables of recipe.toml; empty where there is none. Raises RunDirectoryError where it cannot be read."""
        if not self.recipe.is_file():
            return {}
        try:
            return tomllib.loads(self.recipe.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise RunDirectoryError(f"cannot read {self.recipe}: {error}") from error


def read_json(path: Path, keys: Sequence[str] = ()) -> dict[str, Any] | None:
    """The object in a JSON file that has these keys, or None where there is no file; raises RunDirectoryError."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"cannot read {path}: {error}") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing or not isinstance(content, dict):
        raise RunDirectoryError(f"{path} is damaged: expected {', '.join(keys) or 'an object'}, missing {missing}")
    return content
