"""MLflow: a run in the store that MLFLOW_TRACKING_URI names."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from certood.errors import RecipeError
from certood.optional import optional
from certood.runs.tables import flat_keys
from certood.train.trackers.base import PROJECT, Tracker

# What a name of a metric may not hold.
FORBIDDEN = re.compile(r"[^\w\-. /]")
LONGEST = 250


@dataclass
class MLflowTracker(Tracker):
    """Parameters and metrics of a run of the experiment MLFLOW_EXPERIMENT_NAME, or certood."""

    _client: Any = field(default=None, init=False, repr=False)
    _run: str = field(default="", init=False, repr=False)

    def require(self) -> None:
        """Raise RecipeError where MLflow is not installed."""
        _library()

    def start(self, folder: Path, tables: Mapping[str, Any], known: str | None, done: int) -> str:
        """The identifier of the run; parameters are told once, since MLflow lets none change."""
        self._client = _library().MlflowClient()
        if known is not None:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._run = str(self._client.create_run(number, run_name=folder.name).info.run_id)
        for key, value in flat_keys(tables).items():
            self._client.log_param(self._run, key, value)
        return self._run

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """A metric for every value that is a number: a store of SQL takes no other."""
        for name, value in values.items():
            if not math.isnan(value):
                self._client.log_metric(self._run, accepted_name(name), float(value), step=number)

    def evaluated(self, epochs: int, values: Mapping[str, float]) -> None:
        """A metric for every figure."""
        self.epoch(epochs, values)

    def finish(self, *, failed: bool) -> None:
        """The run has the status FINISHED, or FAILED."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def accepted_name(name: str) -> str:
    """A name as MLflow takes it: a relative path in its normal form, of at most so many characters."""
    named = FORBIDDEN.sub("_", name)[-LONGEST:]
    return "/".join("_" if part == ".." else part for part in named.split("/") if part not in ("", ".")) or "_"


def _library() -> ModuleType:
    missing = RecipeError("run.trackers has mlflow, which is not installed: pip install 'certood[mlflow]'")
    return optional("mlflow", missing)
