"""Batches of images certified one after the other, or by several processes of this machine."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process

import torch

from certood.analysis.certification import certify, question_of
from certood.analysis.question import Question
from certood.analysis.records import Certificate
from certood.analysis.settings import Settings
from certood.data import ImageSource, to_pixels
from certood.detector import Detector
from certood.errors import CertoodError


@dataclass(frozen=True)
class Job:
    """Images of one set that belong to one batch."""

    name: str
    kind: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Worker:
    """What every batch needs."""

    detector: Detector
    sources: Mapping[str, tuple[str, ImageSource]]
    settings: Settings
    question: Question
    advance: Callable[[float], None] = lambda _: None

    @classmethod
    def prepared(
        cls, detector: Detector, sources: Mapping[str, tuple[str, ImageSource]], settings: Settings
    ) -> "Worker":
        """A worker of a process of its own, which captures the network once."""
        question = question_of(detector, settings.norm, smoothed=settings.smoothed, bound_base=settings.bound_base)
        return cls(detector, sources, settings, question)

    def __call__(self, job: Job) -> list[Certificate]:
        """The certificates of a batch."""
        images = to_pixels(self.sources[job.name][1].batch(torch.tensor(job.indices)))
        return certify(
            self.detector,
            images,
            kind=job.kind,
            name=job.name,
            indices=job.indices,
            settings=self.settings,
            batch_size=len(job.indices),
            question=self.question,
            advance=self.advance,
        )


def results(
    detector: Detector,
    sources: Mapping[str, tuple[str, ImageSource]],
    jobs: Sequence[Job],
    settings: Settings,
    question: Question,
    processes: int,
    advance: Callable[[float], None] = lambda _: None,
) -> Iterator[list[Certificate]]:
    """The certificates of every batch, in the order in which they finish; the records do not depend on the number of processes.

    `advance` is told how many images' worth of a batch is newly done, where one process does all.

    Raises CertoodError where a process ends unexpectedly; what was yielded before is complete.
    """
    if processes <= 1 or len(jobs) <= 1:
        yield from map(Worker(detector, sources, settings, question, advance), jobs)
        return
    arguments = threads_each(processes), detector, sources, settings
    before = set(active_children())
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start, initargs=arguments)
    try:
        for future in as_completed([pool.submit(_work, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise CertoodError(
            "a process ended unexpectedly, perhaps for want of memory; run again with fewer --jobs or a smaller "
            "--batch-size: it continues"
        ) from error
    except BaseException:
        # Whatever ends the work ends the processes too, in the midst of theirs; they write nothing.
        for child in set(active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def threads_each(processes: int) -> int:
    """The threads of each of so many processes of this machine."""
    return max(1, torch.get_num_threads() // processes)


_worker: list[Worker] = []


def _start(
    threads: int, detector: Detector, sources: Mapping[str, tuple[str, ImageSource]], settings: Settings
) -> None:
    """Prepare a process: each captures the network once, and ends when the one that started it is killed."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(Worker.prepared(detector, sources, settings))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: Job) -> list[Certificate]:
    return _worker[0](job)
