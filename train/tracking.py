"""The trackers of a training run: started once, told its epochs and its evaluation, finished whatever happens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certood.errors import CertoodError
from certood.train.recipe import Recipe
from certood.train.trackers import TRACKERS, Tracker


@dataclass
class Tracking:
    """The trackers at work, by name, by what name each knows the run, and of how many epochs it was told."""

    trackers: dict[str, Tracker] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)

    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Tell every tracker the rows of training.csv that it was not told yet; raises CertoodError where one fails."""
        for name, tracker in self.trackers.items():
            for row in rows[self.told[name] :]:
                with _told(name):
                    tracker.epoch(int(row["epoch"]), row)
                self.told[name] += 1

    def evaluated(self, epochs: int, result: Mapping[str, Any]) -> None:
        """Tell what evaluation.json holds; raises CertoodError where a tracker fails."""
        values = figures(result)
        for name, tracker in self.trackers.items():
            with _told(name):
                tracker.evaluated(epochs, values)


def require_trackers(recipe: Recipe) -> None:
    """Raise RecipeError where the package of a tracker of the recipe is not installed."""
    for name in recipe.run.trackers:
        TRACKERS.find(name)().require()


@contextmanager
def tracked(
    recipe: Recipe,
    folder: Path,
    known: Mapping[str, str],
    told: Mapping[str, int],
    begun: Callable[[Mapping[str, str]], None],
    *,
    enabled: bool,
) -> Iterator[Tracking]:
    """The trackers of the recipe at work for the run in a folder; none where they are not `enabled`.

    `known` are the names of the run with the trackers that have it already, and `told` the numbers of epochs that trackers were
    told; `begun` is told the names of the run as soon as a tracker has given it one. Raises CertoodError where a tracker fails,
    once all are finished; one that fails while another error ends the run does not hide it.
    """
    tracking = Tracking(told=dict(told))
    failed = True
    try:
        for name in recipe.run.trackers if enabled else ():
            tracker = TRACKERS.find(name)()
            tracking.told.setdefault(name, 0)
            with _told(name):
                tracking.runs[name] = tracker.start(folder, recipe.to_toml(), known.get(name), tracking.told[name])
            tracking.trackers[name] = tracker
            begun(tracking.runs)
        yield tracking
        failed = False
    finally:
        errors = []
        for name, tracker in tracking.trackers.items():
            try:
                with _told(name):
                    tracker.finish(failed=failed)
            except CertoodError as error:
                errors.append(error)
        if errors and not failed:
            raise errors[0]


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation as evaluation/accuracy and evaluation/SCORE/SET/METRIC."""
    found = {"evaluation/accuracy": float(result["accuracy"])}
    for score, entry in result["scores"].items():
        groups = {name: entry[name] for name in ("mean", "near", "far") if entry.get(name)}
        for group, metrics in (*entry["sets"].items(), *groups.items()):
            numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
            found |= {f"evaluation/{score}/{group}/{name}": value for name, value in numbers.items()}
    return found


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Make one error of whatever a tracker raises."""
    try:
        yield
    except CertoodError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise CertoodError(
            f"the tracker {name} failed ({type(error).__name__}: {first:.300}); whole epochs are kept: mend it, or leave it "
            "out of run.trackers, and continue with --resume"
        ) from error
