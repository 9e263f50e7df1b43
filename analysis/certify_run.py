"""`certood certify` on a run: its own images, with progress, resumable, several processes if wanted."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from certood import __version__
from certood.analysis.certification import Settings, certify, question_of
from certood.analysis.figures import draw_figures
from certood.analysis.lipschitz import global_lipschitz
from certood.analysis.records import CERTIFICATES_FILE, Certificate, append_certificates, read_certificates
from certood.analysis.summary import summarise
from certood.checkpoints import Detector
from certood.data import ImageSource, to_pixels
from certood.errors import CertoodError, DataError, RunDirectoryError

CERTIFICATION_FILE = "certification.json"
SETTINGS_FILE = "certification_settings.json"


@dataclass(frozen=True)
class Job:
    """Images of one set that belong to one batch."""

    name: str
    kind: str
    source: ImageSource
    indices: tuple[int, ...]


def certify_sets(
    detector: Detector,
    inside: ImageSource,
    outside: Mapping[str, ImageSource],
    out: Path,
    settings: Settings,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    devices: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    figures: bool = True,
) -> dict[str, Any]:
    """Certify a detector on an ID set and OOD sets, into the folder `out`; returns what certification.json holds.

    What certificates.csv already has is not done again. With `limit`, so many images of each set, spread evenly over it.
    Raises RunDirectoryError where what is there was made with other settings, and `overwrite` was not asked for.
    """
    if limit is not None and limit < 1:
        raise CertoodError(f"expected a limit of at least 1 image a set, got {limit}")
    sources = {inside.name: ("id", inside)} | {name: ("ood", source) for name, source in outside.items()}
    for name, (_, source) in sources.items():
        if not len(source):
            raise DataError(f"{name} has no images")
        if source.shape != tuple(detector.input_shape):
            raise DataError(
                f"{name} has images of shape {source.shape}, the detector takes {tuple(detector.input_shape)}"
            )
    if settings.method != "smoothing":
        question_of(detector, settings.norm)
    record = settings.record() | {
        "limit": limit,
        "sets": {name: source.fingerprint for name, (_, source) in sources.items()},
        "score": detector.score.name,
        "threshold": detector.threshold,
        "weights": _fingerprint(detector),
    }
    path = out / CERTIFICATES_FILE
    _prepare(out, path, record, overwrite=overwrite)
    done, _ = read_certificates(path, settings.eps) if path.exists() else ([], settings.eps)
    jobs = list(_jobs(sources, done, limit, batch_size))
    total = sum(len(_chosen(source, limit)) for _, source in sources.values())
    with _progress(enabled=progress) as bar:
        task = bar.add_task("certify", total=total, completed=len(done))
        for records in _results(detector, jobs, settings, devices):
            append_certificates(path, records, settings.eps)
            bar.advance(task, len(records))
    records, _ = read_certificates(path, settings.eps)
    result = _result(detector, records, settings)
    write_json(out / CERTIFICATION_FILE, result)
    if figures:
        draw_figures(records, result, out / "figures")
    return result


def _result(detector: Detector, records: Sequence[Certificate], settings: Settings) -> dict[str, Any]:
    smoothed = settings.method == "smoothing"
    return {
        "norm": settings.record()["norm"],
        "method": settings.method if settings.engine == "certood" else f"{settings.method} ({settings.engine})",
        "dtype": "float32" if smoothed else "float64",
        "eps": list(settings.eps),
        **summarise(records, settings.eps, smoothed=smoothed),
        "global_lipschitz": math.nan if smoothed else global_lipschitz(question_of(detector, settings.norm)),
        "score": detector.score.name,
        "threshold": detector.threshold,
        "settings": settings.record(),
        "versions": {"certood": __version__, "torch": torch.__version__},
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, atomically; what is infinite or not a number becomes null. Raises RunDirectoryError where it cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(_finite(content), indent=2) + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror or error}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fingerprint(detector: Detector) -> float:
    """A number that changes with the weights."""
    return float(sum(value.double().abs().sum() for value in detector.model.state_dict().values()))


def _prepare(out: Path, path: Path, record: Mapping[str, Any], *, overwrite: bool) -> None:
    stored = out / SETTINGS_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite:
            path.unlink(missing_ok=True)
            stored.unlink(missing_ok=True)
            shutil.rmtree(out / "figures", ignore_errors=True)
        if path.exists():
            old = json.loads(stored.read_text("utf-8")) if stored.is_file() else None
            new = json.loads(json.dumps(_finite(record)))
            if old != new:
                keys = sorted(key for key in new if old is None or old.get(key) != new[key])
                raise RunDirectoryError(
                    f"{path} was made with other settings ({', '.join(keys)} differ); "
                    "repeat those, replace it with --overwrite, or choose another --out"
                )
            return
        write_json(stored, record)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"cannot use the folder {out}: {error}") from error


def _chosen(source: ImageSource, limit: int | None) -> list[int]:
    """Indices spread evenly over a set: sets are often ordered by class."""
    count = len(source) if limit is None else min(limit, len(source))
    return [index * len(source) // count for index in range(count)]


def _jobs(
    sources: Mapping[str, tuple[str, ImageSource]], done: Sequence[Certificate], limit: int | None, batch_size: int
) -> Iterator[Job]:
    finished = {(record.set, record.index) for record in done}
    for name, (kind, source) in sources.items():
        waiting = [index for index in _chosen(source, limit) if (name, index) not in finished]
        for start in range(0, len(waiting), batch_size):
            yield Job(name, kind, source, tuple(waiting[start : start + batch_size]))


def _work(detector: Detector, job: Job, settings: Settings) -> list[Certificate]:
    images = to_pixels(job.source.batch(torch.tensor(job.indices)))
    return certify(
        detector,
        images,
        kind=job.kind,
        name=job.name,
        indices=job.indices,
        # Images of every batch have their own random numbers, whichever process takes it.
        settings=replace(settings, seed=settings.seed + job.indices[0]),
        batch_size=len(job.indices),
    )


def _results(detector: Detector, jobs: Sequence[Job], settings: Settings, devices: int) -> Iterator[list[Certificate]]:
    if devices <= 1:
        for job in jobs:
            yield _work(detector, job, settings)
        return
    threads = max(1, torch.get_num_threads() // devices)
    with ProcessPoolExecutor(
        devices, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        for future in as_completed([pool.submit(_work, detector, job, settings) for job in jobs]):
            yield future.result()


def _progress(*, enabled: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not enabled or not console.is_terminal,
    )
