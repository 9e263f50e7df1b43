"""95 % intervals of what a sample of images says of all images of its kind: shares, areas under the ROC curve, medians."""

import math
from collections.abc import Sequence

from scipy import stats

from certood.errors import CertoodError

CONFIDENCE = 0.95

Interval = tuple[float, float]


def share_interval(share: float, n: int) -> Interval:
    """The exact interval of a share of n independent images (Clopper and Pearson 1934); raises CertoodError for n = 0."""
    _require_some(n)
    found = stats.binomtest(round(share * n), n).proportion_ci(CONFIDENCE, "exact")
    return float(found.low), float(found.high)


def area_interval(area: float, n_id: int, n_ood: int) -> Interval:
    """An interval of an area under the ROC curve of n_id and n_ood independent images; raises CertoodError where one is 0.

    Wilson's (1927) of a share of m = min(n_id, n_ood) independent pairs: the variance of an area A is at most A·(1 − A)/m
    (Birnbaum and Klose 1957), whatever the scores are distributed like. It is wider than DeLong's interval and the bootstrap's,
    and holds where those have width 0: at the area 1 of a sample that is separated without error.
    """
    pairs = min(n_id, n_ood)
    _require_some(pairs)
    quantile = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) ** 2
    middle = (area + quantile / (2 * pairs)) / (1 + quantile / pairs)
    half = math.sqrt(quantile * (area * (1 - area) / pairs + quantile / (4 * pairs**2))) / (1 + quantile / pairs)
    return max(0.0, middle - half), min(1.0, middle + half)


def median_interval(values: Sequence[float]) -> Interval:
    """The interval of a median between two order statistics of n independent values, infinite where n is below 6.

    The k-th smallest and the k-th largest value enclose the median but for twice the probability that fewer than k of n fall
    below it, a binomial distribution with the share 1/2.
    """
    ordered, n = sorted(values), len(values)
    # The largest k for which P(Binomial(n, 1/2) < k) is at most half of what may go wrong.
    rank = int(stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5)) if n else 0
    if n and stats.binom.cdf(rank, n, 0.5) <= (1 - CONFIDENCE) / 2:
        rank += 1
    return (ordered[rank - 1], ordered[n - rank]) if rank >= 1 else (-math.inf, math.inf)


def _require_some(n: int) -> None:
    if n < 1:
        raise CertoodError(f"expected at least one image for an interval, got {n}")
