"""TensorBoard: events in the run directory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from certood.errors import RecipeError
from certood.optional import optional
from certood.train.trackers.base import Tracker


@dataclass
class TensorBoardTracker(Tracker):
    """Scalars, and the recipe as text, in the folder `tensorboard` of the run."""

    _writer: Any = field(default=None, init=False, repr=False)

    def require(self) -> None:
        """Raise RecipeError where TensorBoard is not installed."""
        _writer_class()

    def start(self, folder: Path, tables: Mapping[str, Any], known: str | None, done: int) -> str:
        """The name of the folder; what it has of later epochs, or of a run that is replaced, is no longer shown."""
        place = folder / "tensorboard"
        self._writer = _writer_class()(str(place), purge_step=done + 1)
        if known is None:
            text = tomli_w.dumps(dict(tables))
            self._writer.add_text("recipe", "\n".join(f"    {line}" for line in text.splitlines()), 0)
        return place.name

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """A scalar for every value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)

    def evaluated(self, epochs: int, values: Mapping[str, float]) -> None:
        """A scalar for every figure."""
        self.epoch(epochs, values)

    def finish(self, *, failed: bool) -> None:
        """Close the file of events, which has no state."""
        self._writer.close()


def _writer_class() -> Any:
    missing = RecipeError("run.trackers has tensorboard, which is not installed: pip install 'certood[tensorboard]'")
    return optional("torch.utils.tensorboard", missing).SummaryWriter
