"""How theory and benchmark go together: rank correlations per image, and over runs, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from certood.analysis.records import Certificate
from certood.analysis.reporting.runs import Run

RESAMPLINGS = 500
FEWEST = 8


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two quantities over `count` items, with a 95 % bootstrap interval."""

    first: str
    second: str
    where: str
    value: float
    low: float
    high: float
    count: int


PAIRS = (
    ("gradient_norm", "lipschitz_certified"),
    ("gradient_norm", "radius_certified"),
    ("lipschitz_certified", "radius_certified"),
    ("margin", "radius_certified"),
    ("radius_gradient", "radius_certified"),
)
NAMES = {
    "gradient_norm": "gradient norm",
    "lipschitz_certified": "certified Lipschitz constant",
    "radius_certified": "certified radius",
    "margin": "margin",
    "radius_gradient": "gradient radius (estimate)",
}


def image_correlations(run: Run) -> list[Correlation]:
    """Correlations over the images of a run that are decided rightly, ID and OOD apart."""
    if run.certification is None or run.smoothed:
        return []
    found = []
    for kind in ("id", "ood"):
        right = [record for record in run.certificates if record.kind == kind and record.correct]
        if len(right) < FEWEST:
            continue
        for first, second in PAIRS:
            one, two = _column(right, first), _column(right, second)
            value, low, high = spearman(one, two)
            found.append(
                Correlation(NAMES[first], NAMES[second], f"{kind.upper()} images", value, low, high, len(right))
            )
    return found


def run_points(runs: Sequence[Run]) -> list[tuple[str, float, float]]:
    """For every run with both: its name, the mean gradient norm of its ID test images, its mean FPR95."""
    points = []
    for run in runs:
        inside = [record.gradient_norm for record in run.certificates if record.kind == "id"]
        mean = run.benchmark.get("mean")
        if inside and mean is not None and not run.smoothed:
            points.append((run.name, float(np.mean(inside)), float(mean["fpr95"])))
    return points


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float, float]:
    """Spearman's ρ with a 95 % percentile bootstrap interval; not a number where one side is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan, math.nan, math.nan
    value = float(stats.spearmanr(first, second).statistic)
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(first), (RESAMPLINGS, len(first)))
    resampled = [_rank_correlation(first[part], second[part]) for part in chosen]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return value, float(low), float(high)


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def _column(records: Sequence[Certificate], name: str) -> NDArray[np.float64]:
    values = np.array([getattr(record, name) for record in records], dtype=np.float64)
    # Ranks stand for themselves; what is infinite ranks highest.
    return np.nan_to_num(values, nan=-1.0, posinf=1e300)
