"""How theory and benchmark go together: rank correlations per image, and over runs, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from certood.analysis.evidence.registry import quantities
from certood.analysis.records import Certificate
from certood.analysis.reporting.runs import Run

RESAMPLINGS = 1000
FEWEST_IMAGES = 8
FEWEST_RUNS = 3


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two quantities over `count` items, with a 95 % bootstrap interval.

    Not a number where one of the quantities is constant.
    """

    first: str
    second: str
    where: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class RunPoint:
    """A run as one point: the mean gradient norm of its ID test images (an estimate) and its mean FPR95."""

    name: str
    norm: str
    gradient_norm: float
    fpr95: float


PAIRS = (
    ("gradient_norm", "lipschitz_certified"),
    ("gradient_norm", "radius_certified"),
    ("lipschitz_certified", "radius_certified"),
    ("margin", "radius_certified"),
    ("radius_gradient", "radius_certified"),
)


def image_correlations(run: Run) -> list[Correlation]:
    """Correlations over the images of a run that are correctly decided, ID and OOD apart; none for a smoothed run."""
    if not run.certified:
        return []
    found = []
    names = {quantity.title: quantity.label for quantity in quantities()}
    for kind in ("id", "ood"):
        right = [record for record in run.certificates if record.kind == kind and record.correct]
        if len(right) < FEWEST_IMAGES:
            continue
        for first, second in PAIRS:
            value, low, high = spearman(_column(right, first), _column(right, second))
            found.append(
                Correlation(
                    names.get(first, first),
                    names.get(second, second),
                    f"{kind.upper()} images",
                    value,
                    low,
                    high,
                    len(right),
                )
            )
    return found


def run_points(runs: Sequence[Run]) -> list[RunPoint]:
    """A point for every run that is both evaluated and certified."""
    points = []
    for run in runs:
        inside = [record.gradient_norm for record in run.certificates if record.kind == "id"]
        mean = run.benchmark.get("mean")
        if run.certified and inside and mean is not None:
            points.append(RunPoint(run.name, str(run.norm), float(np.mean(inside)), float(mean["fpr95"])))
    return points


def run_correlations(points: Sequence[RunPoint]) -> list[tuple[str, Correlation | None, list[RunPoint]]]:
    """By norm of the ball, since gradient norms in different norms do not compare: the correlation over runs, and its points.

    None with fewer than three runs.
    """
    found: list[tuple[str, Correlation | None, list[RunPoint]]] = []
    for norm in dict.fromkeys(point.norm for point in points):
        own = [point for point in points if point.norm == norm]
        correlation = None
        if len(own) >= FEWEST_RUNS:
            value, low, high = spearman(
                np.array([point.gradient_norm for point in own]), np.array([point.fpr95 for point in own])
            )
            correlation = Correlation(
                "mean gradient norm of ID images", "mean FPR95", "runs", value, low, high, len(own)
            )
        found.append((norm, correlation, own))
    return found


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float, float]:
    """Spearman's ρ with a 95 % percentile bootstrap interval; not a number where one side is constant.

    Resamplings in which a side is constant have no ρ and do not count.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan, math.nan, math.nan
    value = float(stats.spearmanr(first, second).statistic)
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(first), (RESAMPLINGS, len(first)))
    one, two = stats.rankdata(first[chosen], axis=1), stats.rankdata(second[chosen], axis=1)
    one, two = one - one.mean(1, keepdims=True), two - two.mean(1, keepdims=True)
    scale = np.sqrt((one**2).sum(1) * (two**2).sum(1))
    resampled = (one * two).sum(1)[scale > 0] / scale[scale > 0]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return value, float(low), float(high)


def _column(records: Sequence[Certificate], name: str) -> NDArray[np.float64]:
    values = np.array([getattr(record, name) for record in records], dtype=np.float64)
    # Only ranks matter: what is infinite, or not a number and so not bounded, ranks highest.
    return np.where(np.isfinite(values), values, np.finfo(np.float64).max)
