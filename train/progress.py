"""How far a training run is: a bar on a terminal, lines elsewhere: one an epoch, and one now and then within."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Seconds after which a line says how far an epoch is, where there is no terminal.
LINE_SECONDS = 120.0


class TrainingProgress:
    """Shows steps and losses while entered; `enabled=False` shows nothing."""

    def __init__(self, name: str, steps: int, done: int, *, enabled: bool) -> None:
        self._console = Console(stderr=True)
        self._lines = enabled and not self._console.is_terminal
        self._began = self._told = time.monotonic()
        self._first = done
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not enabled or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=steps, completed=done, loss="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self) -> None:
        """One step is done."""
        self._bar.advance(self._task)
        now, task = time.monotonic(), self._bar.tasks[self._task]
        if not self._lines or now - self._told < LINE_SECONDS or task.completed == task.total:
            return
        self._told = now
        done = int(task.completed)
        left = (now - self._began) / (done - self._first) * (task.remaining or 0)
        self._print(f"step {done}/{int(task.total or 0)}  about {duration(left)} left")

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """One epoch is done; `row` is its line of training.csv."""
        self._bar.update(self._task, loss=f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.3f}")
        if self._lines:
            self._told = time.monotonic()
            self._print(
                f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  "
                f"gradient norm in {row['gradient_norm_in']:.4g} out {row['gradient_norm_out']:.4g}  "
                f"{row['seconds']:.1f} s"
            )

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A duration as people say it: seconds below 90, minutes below 90, then hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
