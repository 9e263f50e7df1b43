"""What a report reads of a run: its recipe, evaluation, certification and certificates."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from certood.analysis.recheck import unsound
from certood.analysis.records import Certificate, read_certificates
from certood.bridges.hub import is_repository, local_run
from certood.checkpoints import stored_identity
from certood.errors import RunDirectoryError
from certood.runs import RunDirectory
from certood.runs.directory import read_json
from certood.runs.identity import certificates_hash, differences, differences_of_certification
from certood.runs.schema import CertificationFile, EvaluationFile, read_checked


@dataclass(frozen=True)
class Run:
    """A run directory as read; `evaluation` and `certification` are None where those commands have not run to their end.

    `training` has the columns of training.csv of every epoch, empty where there is none (a foreign network).
    `settings` is what certification_settings.json holds: limit, hashes of the certified sets, effort. `note` says what of the
    run was left out, and why; `stale` says which of its files are about something else than the checkpoint, and were left out.
    """

    name: str
    path: Path
    recipe: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None = None
    certification: Mapping[str, Any] | None = None
    certificates: tuple[Certificate, ...] = ()
    training: tuple[Mapping[str, float], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    stale: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """What of the run is not shown, and why."""
        return (*self.stale, *([f"shown without certificates: {self.note}"] if self.note else []))

    @property
    def label(self) -> str:
        """The last part of its name: that of its folder, or of its repository."""
        return Path(self.name if is_repository(self.name) else self.path.resolve()).name

    @property
    def score(self) -> str | None:
        """The score that the benchmark is shown for: the run's own."""
        if self.evaluation is None:
            return None
        own = str(self.evaluation.get("score"))
        return own if own in self.evaluation["scores"] else str(next(iter(self.evaluation["scores"])))

    @property
    def benchmark(self) -> Mapping[str, Any]:
        """The clean benchmark of that score, empty where the run was not evaluated."""
        if self.evaluation is None:
            return {}
        entry: Mapping[str, Any] = self.evaluation["scores"][self.score]
        return entry

    @property
    def benchmark_images(self) -> tuple[object, ...]:
        """What two benchmarks must share for their rates to be compared: the names and the hashes of their image sets."""
        images: Mapping[str, Any] = (self.evaluation or {}).get("image_sets", {})
        outliers = sorted(images.get("ood", {}).items())
        return tuple(sorted(self.benchmark.get("sets", ()))), images.get("test"), tuple(outliers)

    @property
    def smoothed(self) -> bool:
        """Whether the certification is probabilistic, and about the smoothed detector."""
        return self.certification is not None and self.certification["method"] == "smoothing"

    @property
    def certified(self) -> bool:
        """Whether there are deterministic certificates."""
        return self.certification is not None and not self.smoothed

    @property
    def norm(self) -> str | None:
        """The norm of the certified balls: "inf", "2" or "1"."""
        return None if self.certification is None else str(self.certification["norm"])


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders; raises RunDirectoryError where one is none, or holds neither evaluation nor certification.

    Runs are called by their folder, or by their whole path where two folders have one name, and repositories
    hf:OWNER/NAME by that. A folder given twice counts once.
    """
    runs = [_read(path) for path in {path.resolve(): path for path in paths}.values()]
    names = [run.name for run in runs]
    return [replace(run, name=run.path.as_posix()) if names.count(run.name) > 1 else run for run in runs]


def _read(named: Path) -> Run:
    path = local_run(named)
    if not path.is_dir():
        raise RunDirectoryError(f"no run directory {path}")
    files = RunDirectory(path)
    files.settle()
    evaluation = read_checked(files.evaluation, EvaluationFile)
    certification = read_checked(files.certification, CertificationFile)
    if evaluation is None and certification is None:
        raise RunDirectoryError(
            f"{path} has neither {files.evaluation.name} nor {files.certification.name}: evaluate or certify it first"
        )
    identity = stored_identity(path) if files.checkpoint.is_file() else None
    stale = []
    if evaluation is not None and (why := _stale(evaluation, identity)):
        stale.append(f"{files.evaluation.name} {why}; evaluate it again")
        evaluation = None
    if certification is not None:
        about = identity if identity is not None else (evaluation or {}).get("detector")
        why = _stale(certification, about, differences_of_certification) or _other_images(certification, evaluation)
        if why:
            stale.append(f"{files.certification.name} {why}; certify it again with --overwrite")
            certification = None
    if stale and evaluation is None and certification is None:
        raise RunDirectoryError(f"{path}: {'; '.join(stale)}")
    run = Run(
        str(named) if is_repository(named) else path.resolve().name,
        path,
        files.recipe_tables(),
        evaluation,
        training=_training(files.training),
        stale=tuple(stale),
    )
    if certification is None:
        unfinished = files.certificates.is_file() and not stale
        return replace(
            run, note="its certification has not ended; `certood certify` continues it" if unfinished else ""
        )
    certificates, _ = read_certificates(files.certificates, tuple(certification["eps"]))
    counted = sum(entry["n"] for entry in certification["sets"].values())
    if counted != len(certificates):
        return replace(
            run,
            note=f"{files.certification.name} is about {counted} images and {files.certificates.name} has "
            f"{len(certificates)}: its certification has not ended; `certood certify` continues it",
        )
    if certification.get("certificates_sha256", "") not in ("", certificates_hash(files.certificates)):
        return replace(run, note=f"{files.certificates.name} has changed since {files.certification.name} was written")
    broken = unsound(certificates)
    if broken:
        return replace(
            run,
            note=f"image {broken[0].index} of {broken[0].set} in {files.certificates.name} breaks inequalities that held "
            f"when it was certified ({len(broken)} such images)",
        )
    settings = read_json(files.certification_settings) or {}
    return replace(run, certification=certification, certificates=tuple(certificates), settings=settings)


def _training(path: Path) -> tuple[Mapping[str, float], ...]:
    """The rows of training.csv; raises RunDirectoryError where it does not read."""
    if not path.is_file():
        return ()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            # An empty cell is a term that the training does not have.
            return tuple(
                {name: float(cell) if cell else math.nan for name, cell in row.items()} for row in csv.DictReader(file)
            )
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise RunDirectoryError(f"{path} is damaged: {error}") from error


def _stale(
    content: Mapping[str, Any],
    identity: Mapping[str, Any] | None,
    differing: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]] = differences,
) -> str:
    """Why a result is not about this detector; empty where it is, or where nothing is known to compare with."""
    if identity is None:
        return ""
    own = content.get("detector")
    if not isinstance(own, Mapping):
        return "does not say which detector it is about (it was written by an earlier version)"
    found = differing(own, identity)
    return f"is about another detector than the checkpoint ({', '.join(found)} differ)" if found else ""


def _other_images(certification: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """Why a certification is about other images than the evaluation beside it."""
    certified = certification.get("image_sets", {})
    evaluated = (evaluation or {}).get("image_sets", {}).get("ood", {})
    changed = [name for name in certified if name in evaluated and certified[name] != evaluated[name]]
    return f"is about other images than the evaluation ({', '.join(changed)} differ)" if changed else ""
