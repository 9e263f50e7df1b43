"""`certood certify` on a run: its own images, with progress, resumable, several processes if wanted."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from certood.analysis.bounds.float64_copy import own_precision
from certood.analysis.certification import question_of
from certood.analysis.evidence.global_constant import global_constant
from certood.analysis.evidence.registry import evidence_for
from certood.analysis.evidence.second_attack import nearest_attacks
from certood.analysis.question import Question
from certood.analysis.recheck import unsound
from certood.analysis.records import Certificate, append_certificates, read_certificates
from certood.analysis.reporting.figures import draw_figures
from certood.analysis.settings import Settings
from certood.analysis.shares import (
    Executor,
    Share,
    divided,
    has_begun,
    identity_of,
    merge,
    remove_plan,
    run_shares,
    write_plan,
)
from certood.analysis.summary import summarise
from certood.analysis.workers import Job, results
from certood.data import ImageSource
from certood.detector import Detector
from certood.errors import CertoodError, DataError, RunDirectoryError
from certood.files import refuse_foreign, write_atomically
from certood.runs import RunDirectory
from certood.runs.directory import Part, read_json
from certood.runs.identity import certificates_hash, detector_identity, versions
from certood.runs.schema import SCHEMA_VERSION
from certood.runs.tables import described, differing_keys, flat_keys
from certood.waiting import busy


@dataclass(frozen=True)
class _Set:
    """A set to certify, and which of its images."""

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
    jobs: int = 1,
    executor: Executor | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    figures: bool = True,
) -> dict[str, Any]:
    """Certify a detector on an ID set and OOD sets, into the folder `out`; returns what certification.json holds.

    What certificates.csv already has is not done again. With `limit`, so many images of each set, spread evenly over it. `jobs`
    are processes of this machine, or, with an `executor` (see `certood.analysis.shares`), jobs of its, each with so many
    `threads`; the records are the same.
    Raises RunDirectoryError where what is there was made with other settings, and `overwrite` was not asked for.
    """
    if limit is not None and limit < 1:
        raise CertoodError(f"expected a limit of at least 1 image a set, got {limit}")
    if inside.name in outside:
        raise DataError(f"{inside.name} cannot be in-distribution and outlying at once; leave it out of the OOD sets")
    sources = {inside.name: ("id", inside)} | {name: ("ood", source) for name, source in outside.items()}
    for name, (_, source) in sources.items():
        _check(name, source, detector)
    settings.require_installed()
    with busy("Reading the network", enabled=progress):
        question = question_of(detector, settings.norm, smoothed=settings.smoothed, bound_base=settings.bound_base)
    for evidence in evidence_for(settings):
        evidence.check(question)
    sets = {name: _Set(kind, source, _chosen(source, limit)) for name, (kind, source) in sources.items()}
    record = settings.record() | {
        "limit": limit,
        "sets": {name: part.source.fingerprint for name, part in sets.items()},
        "schema_version": SCHEMA_VERSION,
        "detector": detector_identity(detector),
    }
    run = RunDirectory(out)
    with run.writing("certify"):
        place = _prepare(run, record, overwrite=overwrite)
        done = _read(place.certificates, sets, settings)
        identity = identity_of(_finite(record))
        wanted = {name: part.indices for name, part in sets.items()}
        if merge(place, identity, settings.eps, done, wanted):
            done = _read(place.certificates, sets, settings)
        batches = _batches(sets, done, batch_size)
        if not batches:
            _require_unchanged(place)
        with _progress(enabled=progress) as bar:
            task = bar.add_task("certify", total=sum(len(part.indices) for part in sets.values()), completed=len(done))
            if executor is None:
                finished, moved = len(done), partial(bar.advance, task)
                for records in results(detector, sources, batches, settings, question, jobs, moved):
                    fresh = [one for one in records if (one.set, one.index) not in done]
                    append_certificates(place.certificates, fresh, settings.eps)
                    finished += len(fresh)
                    bar.update(task, completed=finished)
            elif batches:
                write_plan(place, identity, wanted)
                shares = [
                    Share(number, place, identity, detector, sources, settings, part, threads)
                    for number, part in enumerate(divided(batches, jobs))
                ]
                run_shares(executor, shares, lambda count: bar.update(task, completed=len(done) + count))
                merge(place, identity, settings.eps, done, wanted)
        # Processes finish in any order; what is computed from the records does not depend on it.
        found = _read(place.certificates, sets, settings)
        ordered = [found[name, index] for name, part in sets.items() for index in part.indices]
        result = _result(detector, question, ordered, settings) | {
            "schema_version": SCHEMA_VERSION,
            "detector": record["detector"],
            "image_sets": record["sets"],
            "certificates_sha256": certificates_hash(place.certificates),
        }
        if figures:
            draw_figures(ordered, result, place.figures)
        # Last: where it is, nothing of a certification is missing.
        write_json(place.certification, result)
        if place != run:
            run.adopt(Part.CERTIFICATION)
            # The logs of jobs lie in the run itself.
            remove_plan(run)
    return result


def _check(name: str, source: ImageSource, detector: Detector) -> None:
    if not len(source):
        raise DataError(f"{name} has no images")
    if source.shape != tuple(detector.input_shape):
        raise DataError(f"{name} has images of shape {source.shape}, the detector takes {tuple(detector.input_shape)}")


def _read(path: Path, sets: Mapping[str, _Set], settings: Settings) -> dict[tuple[str, int], Certificate]:
    """The records that are there, by set and index; raises RunDirectoryError for one that is there twice, or not ours."""
    records = read_certificates(path, settings.eps, continued=True)[0] if path.exists() else []
    broken = unsound(records)
    if broken:
        raise RunDirectoryError(
            f"{path}: image {broken[0].index} of {broken[0].set!r} breaks inequalities that held when it was certified; "
            "the file was changed; delete that line, or replace all with --overwrite"
        )
    found: dict[tuple[str, int], Certificate] = {}
    wanted = {name: set(part.indices) for name, part in sets.items()}
    for record in records:
        key = record.set, record.index
        if record.index not in wanted.get(record.set, ()) or record.kind != sets[record.set].kind:
            problem = f"image {record.index} of {record.set!r} ({record.kind}), which is not to be certified"
        elif key in found:
            problem = f"image {record.index} of {record.set!r} twice"
        else:
            found[key] = record
            continue
        raise RunDirectoryError(f"{path} holds {problem}; delete that line, or replace all with --overwrite")
    return found


def _require_unchanged(run: RunDirectory) -> None:
    """Raise RunDirectoryError where a finished certification has other certificates now than when it was finished."""
    recorded = (_json_of(run.certification) or {}).get("certificates_sha256")
    if recorded not in (None, certificates_hash(run.certificates)):
        raise RunDirectoryError(
            f"{run.certificates} has changed since {run.certification.name} was written; restore it, or certify again with "
            "--overwrite"
        )


def _result(
    detector: Detector, question: Question, records: Sequence[Certificate], settings: Settings
) -> dict[str, Any]:
    return {
        "norm": settings.record()["norm"],
        "method": "; ".join(dict.fromkeys(record.method for record in records)),
        "dtype": str(own_precision(detector.model)).removeprefix("torch.") if settings.smoothed else settings.dtype,
        "eps": list(settings.eps),
        **summarise(records, settings.eps, smoothed=settings.smoothed, tpr=detector.tpr),
        "global_lipschitz": global_constant(question) if question.score.exact and not settings.smoothed else math.nan,
        **_second_opinion(records, settings),
        "score": detector.score.label,
        "threshold": detector.threshold,
        "settings": settings.record(),
        "versions": versions(),
    }


def _second_opinion(records: Sequence[Certificate], settings: Settings) -> dict[str, dict[str, int]]:
    """Whose attack is the nearest, where a second one was asked for."""
    if settings.second_attack is None:
        return {}
    radii = ((record.radius_attack, record.radius_second_attack) for record in records)
    return {"nearest_attack": nearest_attacks(radii, settings.second_attack)}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, atomically; what is infinite or not a number becomes null. Raises RunDirectoryError where it cannot."""
    write_atomically(path, json.dumps(_finite(content), indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _prepare(run: RunDirectory, record: Mapping[str, Any], *, overwrite: bool) -> RunDirectory:
    """Where to write: the run directory, or, where a certification is overwritten, the hidden folder that replaces it."""
    replacement = run.replacement(Part.CERTIFICATION)
    new = json.loads(json.dumps(_finite(record)))
    if overwrite:
        shutil.rmtree(run.share_folder, ignore_errors=True)
        if run.certificates.exists() and not run.certification_settings.is_file():
            refuse_foreign(run.certificates, lambda content: content.startswith(b"set,kind,index,"))
        run.discard_replacement(Part.CERTIFICATION)
        place = replacement if any(path.exists() for path in run.files(Part.CERTIFICATION)) else run
    else:
        place = replacement if _json_of(replacement.certification_settings) == new else run
    if not has_begun(place):
        write_json(place.certification_settings, record)
        return place
    old = read_json(place.certification_settings)
    if old != new:
        differing = described(flat_keys(old or {}), flat_keys(new), _different(old or {}, new))
        raise RunDirectoryError(
            f"{place.certificates if place.certificates.exists() else place.share_folder} was made with other settings "
            f"({differing}); "
            "repeat those, replace it with --overwrite, or choose another --out"
        )
    return place


def _different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys of settings that differ; of a detector that is not told by its parts, the whole."""
    one, other = flat_keys(old), flat_keys(new)
    if not isinstance(old.get("detector"), Mapping):
        other = {key: value for key, value in other.items() if not key.startswith("detector.")} | {"detector": None}
    return [key for key in differing_keys(one, other) if key != "detector.sha256"]


def _json_of(path: Path) -> Mapping[str, Any] | None:
    """The object in a JSON file, None where there is no file or it does not read."""
    try:
        return read_json(path)
    except RunDirectoryError:
        return None


def _chosen(source: ImageSource, limit: int | None) -> tuple[int, ...]:
    """Indices spread evenly over a set: sets are often ordered by class."""
    count = len(source) if limit is None else min(limit, len(source))
    return tuple(index * len(source) // count for index in range(count))


def _batches(sets: Mapping[str, _Set], done: Mapping[tuple[str, int], Certificate], batch_size: int) -> list[Job]:
    """Batches of which something is missing; always the same ones, so that a resumed run rounds as an uninterrupted one."""
    batches = [
        Job(name, part.kind, part.indices[start : start + batch_size])
        for name, part in sets.items()
        for start in range(0, len(part.indices), batch_size)
    ]
    return [job for job in batches if not all((job.name, index) in done for index in job.indices)]


def _progress(*, enabled: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        # A batch may take minutes: the time left is estimated from all of them, not from the last half minute.
        speed_estimate_period=24 * 3600,
        console=console,
        disable=not enabled or not console.is_terminal,
    )
