"""Weights & Biases: a run of the project that WANDB_PROJECT names; WANDB_MODE=offline keeps it on this machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from certood.errors import RecipeError
from certood.optional import optional
from certood.train.trackers.base import PROJECT, Tracker


@dataclass
class WandbTracker(Tracker):
    """Configuration, history by epoch, and the evaluation in the summary, of a run of WANDB_PROJECT, or certood."""

    _run: Any = field(default=None, init=False, repr=False)

    def require(self) -> None:
        """Raise RecipeError where wandb is not installed."""
        _library()

    def start(self, folder: Path, tables: Mapping[str, Any], known: str | None, done: int) -> str:
        """The identifier of the run, by which another process, or a later synchronisation, continues it."""
        wandb = _library()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=known,
            resume=None if known is None else "allow",
            config=dict(tables),
            # The bar of this terminal is no output of the run.
            settings=wandb.Settings(console="off"),
        )
        return str(self._run.id)

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """A step of the history."""
        self._run.log(dict(values), step=number)

    def evaluated(self, epochs: int, values: Mapping[str, float]) -> None:
        """Entries of the summary."""
        self._run.summary.update(dict(values))

    def finish(self, *, failed: bool) -> None:
        """The run is finished, or failed."""
        self._run.finish(exit_code=int(failed))


def _library() -> ModuleType:
    missing = RecipeError("run.trackers has wandb, which is not installed: pip install 'certood[wandb]'")
    return optional("wandb", missing)
