"""Arms beside each other: means and standard deviations over seeds, and paired differences with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from certood.analysis.intervals import CONFIDENCE
from certood.analysis.reporting.arms import Arm
from certood.analysis.reporting.kinds import ALL, ood_groups
from certood.errors import CertoodError
from certood.evaluation import METRICS

ACCURACY = "accuracy"
# What is compared, by the names in files, and as tables head it.
COMPARED = {ACCURACY: ACCURACY, **METRICS}
# The metrics of which the lower value is the better one.
LOWER_IS_BETTER = frozenset({"fpr95"})


@dataclass(frozen=True)
class Difference:
    """An arm less the arm that it is compared with, in percentage points: the mean over the seeds that both have.

    `low` and `high` are the ends of the 95 % interval of Student's paired t test (n − 1 degrees of freedom), which takes the
    differences of single seeds as independent draws of one normal distribution; they are not numbers with fewer than two seeds.
    """

    mean: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Line:
    """A metric of an arm on some OOD sets (their mean), in per cent: by seed, its mean, and its standard deviation over seeds.

    `group` is near, far, all, or empty for a single set; accuracy, which belongs to no OOD set, has the group all. The sample
    standard deviation (divisor n − 1) is not a number for one seed. `difference` is None for the arm that the others are
    compared with, and where no seed is common.
    """

    arm: str
    metric: str
    group: str
    sets: tuple[str, ...]
    values: tuple[float, ...]
    difference: Difference | None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds."""
        return stdev(self.values) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Comparison:
    """Arms, the one that the others are compared with, the groups of OOD sets, and every number."""

    arms: tuple[Arm, ...]
    against: str
    groups: dict[str, tuple[str, ...]]
    lines: tuple[Line, ...]

    @property
    def sets(self) -> tuple[str, ...]:
        """The OOD sets."""
        return self.groups[ALL]

    def find(self, arm: str, metric: str, group: str = ALL) -> Line:
        """The line of an arm, a metric and a group of sets."""
        return next(line for line in self.lines if (line.arm, line.metric, line.group) == (arm, metric, group))


def compare_arms(arms: Sequence[Arm], against: str | None = None, near: Sequence[str] = ()) -> Comparison:
    """Compare arms with one of them (default: the first), OOD sets that are near apart from the others, which are far.

    Without `near` they are those of `certood.analysis.reporting.kinds.ood_groups`, as in the report. Raises CertoodError for an
    arm or a set that is not there.
    """
    names = [arm.name for arm in arms]
    if against is not None and against not in names:
        raise CertoodError(f"there is no arm {against!r} to compare with: expected one of {', '.join(names)}")
    base = next(arm for arm in arms if arm.name == (against or names[0]))
    sets = tuple(base.benchmark(base.seeds[0])["sets"])
    # Sets that are certified but not evaluated have no benchmark.
    parts = ood_groups([arm.runs[seed] for arm in arms for seed in arm.seeds], near)
    evaluated = {group: tuple(name for name in names if name in sets) for group, names in parts.items()}
    groups = {group: names for group, names in evaluated.items() if names and names != sets} | {ALL: sets}
    places = [*groups.items(), *(("", (name,)) for name in sets)]
    lines = [_line(arm, base, ACCURACY, ALL, ()) for arm in arms]
    lines += [_line(arm, base, metric, *place) for metric in METRICS for place in places if place[1] for arm in arms]
    return Comparison(tuple(arms), base.name, groups, tuple(lines))


def paired_difference(differences: Sequence[float]) -> Difference:
    """The mean of the differences of single seeds, with the interval of Student's t."""
    mean, n = fmean(differences), len(differences)
    if n < 2:
        return Difference(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def _line(arm: Arm, base: Arm, metric: str, group: str, sets: tuple[str, ...]) -> Line:
    values = {seed: _value(arm, seed, metric, sets) for seed in arm.seeds}
    # Runs without a seed are no pair.
    common = [seed for seed in arm.seeds if seed in base.runs and seed is not None]
    difference = None
    if arm.name != base.name and common:
        difference = paired_difference([values[seed] - _value(base, seed, metric, sets) for seed in common])
    return Line(arm.name, metric, group, sets, tuple(values.values()), difference)


def _value(arm: Arm, seed: int | None, metric: str, sets: tuple[str, ...]) -> float:
    if metric == ACCURACY:
        evaluation = arm.runs[seed].evaluation
        assert evaluation is not None
        return 100 * float(evaluation[ACCURACY])
    entries = arm.benchmark(seed)["sets"]
    return 100 * fmean(entries[name][metric] for name in sets)
