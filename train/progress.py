"""How far a training run is: a bar on a terminal, a line an epoch elsewhere."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """Shows steps and losses while entered; `enabled=False` shows nothing."""

    def __init__(self, name: str, steps: int, done: int, *, enabled: bool) -> None:
        self._console = Console(stderr=True)
        self._enabled = enabled
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

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """One epoch is done; `row` is its line of training.csv."""
        self._bar.update(self._task, loss=f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.3f}")
        if self._enabled and not self._console.is_terminal:
            self._console.print(
                f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  "
                f"gradient norm in {row['gradient_norm_in']:.4g} out {row['gradient_norm_out']:.4g}  "
                f"{row['seconds']:.1f} s",
                highlight=False,
                soft_wrap=True,
            )


def duration(seconds: float) -> str:
    """A duration as people say it: seconds below 90, minutes below 90, then hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
