"""A certification by many jobs, on one machine or a cluster: each writes a file of its own, and a merge puts these together.

A job knows the images of its share and nothing of the others: it may be killed, lost, or run again. Only the merge holds the lock
of the run. Any executor with `submit` serves, such as those of concurrent.futures, `submitit`, or Dask's `Client.get_executor()`.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from certood.analysis.recheck import unsound
from certood.analysis.records import Certificate, append_certificates, read_certificates, row
from certood.analysis.settings import Settings
from certood.analysis.workers import Job, Worker
from certood.data import ImageSource
from certood.detector import Detector
from certood.errors import CertoodError, RunDirectoryError
from certood.files import write_atomically
from certood.runs import RunDirectory
from certood.runs.directory import Part, read_json
from certood.runs.lock import locked
from certood.runs.schema import SCHEMA_VERSION, SharePlanFile, read_checked

# Seconds between two looks at how far the jobs are.
WAIT = 1.0

Key = tuple[str, int]


class Submitted(Protocol):
    """What an executor gives for a job: a concurrent.futures.Future, a job of submitit."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def result(self) -> Any:
        """What it returned; raises what it raised, or that it was lost."""
        ...

    def cancel(self) -> object:
        """End it, if that is possible."""
        ...


class Executor(Protocol):
    """What runs jobs elsewhere."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any) -> Submitted:
        """Run a function of pickled arguments."""
        ...


@dataclass(frozen=True)
class Share:
    """Batches for one job, and all that it needs; what its file has already is not done again."""

    number: int
    run: RunDirectory
    identity: str
    detector: Detector
    sources: Mapping[str, tuple[str, ImageSource]]
    settings: Settings
    jobs: tuple[Job, ...]
    threads: int | None = None

    def __call__(self) -> None:
        """Certify the share into its folder, with so many `threads` where that is said."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        own = RunDirectory(self.run.share(self.number))
        with locked(own.folder, f"certify, share {self.number}"):
            known = _identity(own)
            if known not in ("", self.identity):
                own.certificates.unlink(missing_ok=True)
            write_atomically(
                own.certification_settings, json.dumps({"schema_version": SCHEMA_VERSION, "identity": self.identity})
            )
            done = _records(own, self.settings.eps, continued=True)
            worker = Worker.prepared(self.detector, self.sources, self.settings)
            for job in self.jobs:
                if all((job.name, index) in done for index in job.indices):
                    continue
                fresh = [record for record in worker(job) if (record.set, record.index) not in done]
                append_certificates(own.certificates, fresh, self.settings.eps)


def identity_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of the settings of a certification: detector, image sets and effort."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def divided(jobs: Sequence[Job], count: int) -> list[tuple[Job, ...]]:
    """The batches in at most so many shares, each with some of every set."""
    return [tuple(jobs[start::count]) for start in range(min(count, len(jobs)))]


def write_plan(run: RunDirectory, identity: str, wanted: Mapping[str, Sequence[int]]) -> None:
    """Write down which images of which sets the shares are to have, so that a merge finds gaps."""
    run.share_folder.mkdir(parents=True, exist_ok=True)
    content = {
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "wanted": {name: list(indices) for name, indices in wanted.items()},
    }
    write_atomically(run.share_plan, json.dumps(content))


def merge_begun(run: RunDirectory) -> tuple[int, dict[str, list[int]]]:
    """Merge what the shares of a begun certification have: how many records that were, and the images that are missing, by set.

    Raises RunDirectoryError where there is nothing to merge, or as `merge` does.
    """
    if not run.folder.is_dir():
        raise RunDirectoryError(f"there is no folder {run.folder}")
    with run.writing("merge"):
        # Where a certification is overwritten, its jobs write to what will replace it.
        replacement = run.replacement(Part.CERTIFICATION)
        run = replacement if replacement.share_plan.is_file() else run
        settings = read_json(run.certification_settings, ["eps"])
        plan = read_checked(run.share_plan, SharePlanFile)
        if plan is None or settings is None:
            raise RunDirectoryError(f"{run.folder} has no shares of a certification to merge")
        if plan["identity"] != identity_of(settings):
            raise RunDirectoryError(
                f"{run.share_plan} is of other settings than {run.certification_settings}: these are not one certification"
            )
        eps, wanted = tuple(settings["eps"]), plan["wanted"]
        known = _records(run, eps, continued=True)
        count = merge(run, plan["identity"], eps, known, wanted)
        known = _records(run, eps)
    missing = {name: [index for index in indices if (name, index) not in known] for name, indices in wanted.items()}
    return count, {name: indices for name, indices in missing.items() if indices}


def has_begun(run: RunDirectory) -> bool:
    """Whether anything of a certification is there: its certificates, or shares that wait to be merged."""
    return run.certificates.exists() or any(_identity(RunDirectory(folder)) for folder in run.shares())


def merge(
    run: RunDirectory,
    identity: str,
    eps: Sequence[float],
    known: Mapping[Key, Certificate],
    wanted: Mapping[str, Collection[int]],
) -> int:
    """Append what the shares have to the certificates of a run, and remove the shares; how many records that were.

    `wanted` are the images of every set that are certified. Raises RunDirectoryError where a share is being written, was made
    with other settings, has other images or numbers that contradict each other, or differs from what is known of an image
    already; nothing is merged and the shares stay then.
    """
    shares = run.shares()
    found = dict(known)
    fresh: list[Certificate] = []
    with ExitStack() as locks:
        for folder in shares:
            locks.enter_context(locked(folder, "merge"))
        for folder in shares:
            own = RunDirectory(folder)
            if own.certificates.exists() and _identity(own) != identity:
                raise RunDirectoryError(
                    f"{folder} was made with other settings than {run.certificates}; delete it, or repeat those settings"
                )
            for record in _lines_of(own, eps):
                key = record.set, record.index
                if record.index not in wanted.get(record.set, ()):
                    raise RunDirectoryError(
                        f"{folder} has a certificate of image {record.index} of {record.set!r}, which is not to be certified; "
                        "delete that line"
                    )
                if key not in found:
                    found[key] = record
                    fresh.append(record)
                elif _content(record) != _content(found[key]):
                    raise RunDirectoryError(
                        f"{folder} has another certificate of image {record.index} of {record.set!r} than "
                        f"{run.certificates}, itself or another share; delete the one that is not to be trusted"
                    )
        broken = unsound(fresh)
        if broken:
            raise RunDirectoryError(
                f"{run.share_folder}: image {broken[0].index} of {broken[0].set!r} breaks inequalities that held when it was "
                "certified; a file was changed; delete that line"
            )
        if fresh:
            append_certificates(run.certificates, sorted(fresh, key=lambda one: (one.set, one.index)), eps)
        for folder in shares:
            shutil.rmtree(folder, ignore_errors=True)
    remove_plan(run)
    return len(fresh)


def remove_plan(run: RunDirectory) -> None:
    """Remove what jobs left beside their shares, and the folder of all unless there is more in it."""
    run.share_plan.unlink(missing_ok=True)
    shutil.rmtree(run.share_logs, ignore_errors=True)
    with suppress(OSError):
        run.share_folder.rmdir()


def run_shares(executor: Executor, shares: Sequence[Share], advance: Callable[[int], None]) -> None:
    """Run all shares to their end; `advance` is told how many images are done.

    Raises CertoodError where jobs failed or were lost, when all have ended. Whatever ends the wait ends the jobs, where the
    executor can do that; what they wrote is merged by the next run.
    """
    running = [executor.submit(share) for share in shares]
    try:
        while not all(job.done() for job in running):
            advance(sum(_lines(share) for share in shares))
            time.sleep(WAIT)
    except BaseException:
        for job in running:
            job.cancel()
        raise
    advance(sum(_lines(share) for share in shares))
    failures = [
        (share.number, problem) for share, job in zip(shares, running, strict=True) if (problem := _problem(job))
    ]
    if failures:
        number, problem = failures[0]
        raise CertoodError(
            f"{len(failures)} of {len(shares)} jobs did not end well (job {number}: {problem}); the same command goes on with "
            "what is missing"
        )


def _problem(job: Submitted) -> str:
    try:
        job.result()
    except Exception as error:  # executors raise what they like for a lost job
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ""


def _identity(own: RunDirectory) -> str:
    """Of which certification a share is part; empty where it has not begun."""
    return str((read_json(own.certification_settings) or {}).get("identity", ""))


def _records(own: RunDirectory, eps: Sequence[float], *, continued: bool = False) -> dict[Key, Certificate]:
    return {(record.set, record.index): record for record in _lines_of(own, eps, continued=continued)}


def _lines_of(own: RunDirectory, eps: Sequence[float], *, continued: bool = False) -> list[Certificate]:
    if not own.certificates.is_file():
        return []
    return read_certificates(own.certificates, tuple(eps), continued=continued)[0]


def _content(record: Certificate) -> dict[str, str]:
    """The cells of a record, but for the time that it took."""
    return {name: repr(value) for name, value in row(record).items() if name != "seconds"}


def _lines(share: Share) -> int:
    """How many records a share has; its file may be written at this moment."""
    try:
        return max(0, RunDirectory(share.run.share(share.number)).certificates.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0
