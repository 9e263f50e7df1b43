"""A run directory: the files of one detector by name, and how they are read."""

import contextlib
import json
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from certood.errors import RunDirectoryError
from certood.files import abandoned, remove_abandoned, write_atomically
from certood.runs.lock import HOLDER_FILE, LOCK_FILE, locked

FIGURES = (
    "certified_fraction",
    "gradient_norms",
    "lipschitz",
    "margin_radius",
    "roc",
    "scores",
    "smoothed_fraction",
)


class Part(Enum):
    """What of a run is replaced at once."""

    TRAINING = "training"
    CERTIFICATION = "certification"


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one detector; every command finds its files here, and their names stand nowhere else.

    recipe.toml, checkpoint.safetensors, training_state.pt and training.csv come from training; evaluation.json from the clean
    benchmark; certificates.csv, certification.json, certification_settings.json and figures/ from certification.
    """

    folder: Path

    @classmethod
    def of(cls, path: Path | str) -> "RunDirectory":
        """The run directory at a path, or the one in which a file such as a checkpoint lies, which need not be there."""
        path = Path(path)
        return cls(path.parent if path.is_file() or (path.suffix and not path.is_dir()) else path)

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
        """Whether the folder is not there, or holds nothing but a lock and what killed processes left of their first writes.

        Raises RunDirectoryError where it is not a folder.
        """
        try:
            remains = {path for target in self._written for path in abandoned(target)}
            return all(path.name in (LOCK_FILE, HOLDER_FILE) or path in remains for path in self.folder.iterdir())
        except FileNotFoundError:
            return True
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write the run directory {self.folder}: {error.strerror or error}"
            ) from error

    @property
    def _written(self) -> tuple[Path, ...]:
        """All files that certood writes in the folder."""
        every = (path for part in Part for path in self.files(part))
        return (*every, self.report, self.finished, self.folder / HOLDER_FILE)

    @contextmanager
    def writing(self, command: str) -> Iterator[None]:
        """Hold the lock of the folder, which is made if need be; raises RunDirectoryError that names another holder.

        What a killed process left is dealt with now: a replacement that was complete takes its place, and files that were not
        written to their end are removed.
        """
        with locked(self.folder, command):
            for part in Part:
                if self.replacement(part).finished.is_file():
                    self.adopt(part)
            for folder in (self, *map(self.replacement, Part)):
                for path in folder._written:
                    remove_abandoned(path)
            yield

    def settle(self) -> None:
        """Finish an exchange of files that a kill interrupted. Raises RunDirectoryError as `writing` does."""
        if any(self.replacement(part).finished.is_file() for part in Part):
            with self.writing("settle"):
                pass

    def files(self, part: "Part") -> tuple[Path, ...]:
        """The files that training or certification writes."""
        if part is Part.TRAINING:
            return self.recipe, self.checkpoint, self.training_state, self.training, self.evaluation
        figures = tuple(self.figures / f"{name}.{ending}" for name in FIGURES for ending in ("png", "svg"))
        return self.certificates, self.certification, self.certification_settings, *figures

    @property
    def finished(self) -> Path:
        """In a replacement: the list of its files, written when it is complete."""
        return self.folder / "finished.json"

    @property
    def share_folder(self) -> Path:
        """Where jobs that certify elsewhere write, until they are merged."""
        return self.folder / "shares"

    @property
    def share_plan(self) -> Path:
        """Which images these jobs are to certify."""
        return self.share_folder / "plan.json"

    @property
    def share_logs(self) -> Path:
        """What executors write about these jobs."""
        return self.share_folder / "logs"

    def share(self, number: int) -> Path:
        """The folder of one job."""
        return self.share_folder / f"{number:04d}"

    def shares(self) -> list[Path]:
        """The folders of the jobs that have begun, and are not merged."""
        found = self.share_folder.iterdir() if self.share_folder.is_dir() else ()
        return sorted(path for path in found if path.is_dir() and path.name.isdigit())

    def replacement(self, part: "Part") -> "RunDirectory":
        """The hidden folder in which what is to replace training or certification is made, while the old files stay."""
        return RunDirectory(self.folder / f".new-{part.value}")

    def discard_replacement(self, part: "Part") -> None:
        """Remove what was begun to replace training or certification."""
        shutil.rmtree(self.replacement(part).folder, ignore_errors=True)

    def adopt(self, part: "Part") -> None:
        """Put a complete replacement in the place of the old files; a kill on the way is made good by the next writer.

        New training makes the certification and the report of the old one void: they are removed. No file of another name is
        touched. Raises RunDirectoryError where a file cannot be moved.
        """
        new = self.replacement(part)
        try:
            if not new.finished.is_file():
                names = [str(path.relative_to(new.folder)) for path in new.files(part) if path.is_file()]
                write_atomically(new.finished, json.dumps(names))
            kept = json.loads(new.finished.read_text("utf-8"))
            stale = (*self.files(Part.CERTIFICATION), self.report) if part is Part.TRAINING else ()
            for old in stale:
                old.unlink(missing_ok=True)
            for source, target in zip(new.files(part), self.files(part), strict=True):
                if source.is_file():
                    target.parent.mkdir(exist_ok=True)
                    source.replace(target)
                elif str(source.relative_to(new.folder)) not in kept:
                    target.unlink(missing_ok=True)
            shutil.rmtree(new.folder)
            with contextlib.suppress(OSError):
                self.figures.rmdir()
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"cannot replace the files of {self.folder}: {error}") from error

    def recipe_tables(self) -> dict[str, Any]:
        """The tables of recipe.toml; empty where there is none. Raises RunDirectoryError where it cannot be read."""
        if not self.recipe.is_file():
            return {}
        try:
            return tomllib.loads(self.recipe.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
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
