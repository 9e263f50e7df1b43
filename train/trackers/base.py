"""What a tracker of recipes is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Runs are found under this name where the tracker's own settings name no other.
PROJECT = "certood"


@dataclass
class Tracker(ABC):
    """Tells one service about one run; where that is, and who may, is set as the service itself documents it.

    Whatever the service raises is passed on; whoever calls makes one error of it.
    """

    @abstractmethod
    def require(self) -> None:
        """Raise RecipeError, which names what to install, where the service's package is not installed."""

    @abstractmethod
    def start(self, folder: Path, tables: Mapping[str, Any], known: str | None, done: int) -> str:
        """Begin with the run of this folder and this recipe, or go on with the `known` one, of which `done` epochs are told.

        Returns the name by which the service knows the run.
        """

    @abstractmethod
    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """The row of training.csv of an epoch, counted from 1."""

    @abstractmethod
    def evaluated(self, epochs: int, values: Mapping[str, float]) -> None:
        """The figures of the evaluation after the last of so many epochs."""

    @abstractmethod
    def finish(self, *, failed: bool) -> None:
        """Nothing more is told; `failed` where an error or an interruption ended the run."""
