"""What a report reads of a run: its recipe, evaluation, certification and certificates."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certood.analysis.certify_run import CERTIFICATION_FILE
from certood.analysis.records import CERTIFICATES_FILE, Certificate, read_certificates
from certood.errors import RunDirectoryError
from certood.run_data import recipe_tables

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class Run:
    """A run directory as read; `evaluation` and `certification` are None where those commands have not run."""

    name: str
    path: Path
    recipe: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    certification: Mapping[str, Any] | None
    certificates: tuple[Certificate, ...]

    @property
    def benchmark(self) -> Mapping[str, Any]:
        """The clean benchmark of the run's own score, empty where it was not evaluated."""
        if self.evaluation is None:
            return {}
        scores: Mapping[str, Any] = self.evaluation["scores"]
        own = str(self.evaluation.get("score"))
        entry: Mapping[str, Any] = scores[own] if own in scores else next(iter(scores.values()))
        return entry

    @property
    def smoothed(self) -> bool:
        """Whether the certification is probabilistic."""
        return self.certification is not None and self.certification["method"] == "smoothing"


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders; raises RunDirectoryError where one is none, or holds neither evaluation nor certification."""
    runs = [_read(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        runs = [Run(str(run.path), *(getattr(run, key) for key in RUN_FIELDS)) for run in runs]
    return runs


RUN_FIELDS = ("path", "recipe", "evaluation", "certification", "certificates")


def _read(path: Path) -> Run:
    if not path.is_dir():
        raise RunDirectoryError(f"no run directory {path}")
    evaluation, certification = _json(path / EVALUATION_FILE), _json(path / CERTIFICATION_FILE)
    if evaluation is None and certification is None:
        raise RunDirectoryError(
            f"{path} has neither {EVALUATION_FILE} nor {CERTIFICATION_FILE}: evaluate or certify it first"
        )
    certificates: list[Certificate] = []
    if certification is not None:
        certificates, _ = read_certificates(path / CERTIFICATES_FILE)
    return Run(path.resolve().name, path, recipe_tables(path), evaluation, certification, tuple(certificates))


def _json(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"cannot read {path}: {error}") from error
    assert isinstance(content, dict)
    return content
