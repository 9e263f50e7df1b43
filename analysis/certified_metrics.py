"""Benchmark metrics under a threat model: clean, attacked and guaranteed.

GOOD: Bitterwolf et al., NeurIPS 2020, arXiv 2007.08473; ProoD: Meinke et al., NeurIPS 2022, arXiv 2106.04260.

The threat is a ball around the OOD image alone, ID images being clean, or a ball around both. Attacked scores are the worst that
were found, guaranteed ones are certified bounds; ties count against the detector, so that a network about which nothing
is known gets a guaranteed AUC of 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certood.errors import CertoodError


@dataclass(frozen=True)
class ThreatMetrics:
    """AUC, attacked and guaranteed AUC, and the same of FPR95; `gauc ≤ aauc ≤ auc`, `fpr95 ≤ afpr95 ≤ gfpr95`."""

    auc: float
    aauc: float
    gauc: float
    fpr95: float
    afpr95: float
    gfpr95: float


def strict_auc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Share of pairs in which the OOD image scores strictly higher; −inf and inf are allowed, not a number counts as lost."""
    inside, outside = _array(id_scores, "ID"), _array(ood_scores, "OOD")
    outside = outside[~np.isnan(outside)]
    total = len(_array(ood_scores, "OOD")) * len(inside)
    ordered = np.sort(np.where(np.isnan(inside), np.inf, inside))
    return float(np.searchsorted(ordered, outside, "left").sum(dtype=np.float64) / total)


def worst_scores(
    clean: NDArray[np.float64], attacked: NDArray[np.float64], bound: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest scores of OOD images (N,) that attacks found, and those that are guaranteed.

    Where no attack was made that is the clean score, and where no bound is known nothing is guaranteed. An attack never does
    better than the certificate, also where rounding says otherwise.
    """
    found = np.fmin(attacked, clean)
    return found, np.where(np.isnan(bound), -np.inf, np.fmin(bound, found))


def threat_metrics(
    clean_id: ArrayLike,
    clean_ood: ArrayLike,
    attacked_ood: ArrayLike,
    bound_ood: ArrayLike,
    threshold: float,
    *,
    attacked_id: ArrayLike | None = None,
    bound_id: ArrayLike | None = None,
) -> ThreatMetrics:
    """Metrics of scores (N,): OOD at their lowest attacked values and certified lower bounds.

    Given `attacked_id` and `bound_id`, the highest attacked values and certified upper bounds of ID images, the threat is
    on both sides. An attack never does better than the certificate or worse than the clean score, also where rounding says
    otherwise. Raises CertoodError for empty arrays or lengths that differ.
    """
    clean, outside = _array(clean_id, "ID"), _array(clean_ood, "OOD")
    attacked, bound = _array(attacked_ood, "attacked OOD"), _array(bound_ood, "OOD bound")
    _same(outside, attacked, bound)
    attacked, bound = worst_scores(outside, attacked, bound)
    id_attacked, id_bound = clean, clean
    if attacked_id is not None and bound_id is not None:
        id_attacked, id_bound = _array(attacked_id, "attacked ID"), _array(bound_id, "ID bound")
        _same(clean, id_attacked, id_bound)
        id_attacked = np.fmax(id_attacked, clean)
        id_bound = np.where(np.isnan(id_bound), np.inf, np.fmax(id_bound, id_attacked))
    return ThreatMetrics(
        auc=strict_auc(clean, outside),
        aauc=strict_auc(id_attacked, attacked),
        gauc=strict_auc(id_bound, bound),
        fpr95=_accepted(outside, threshold),
        afpr95=_accepted(attacked, threshold),
        gfpr95=_accepted(bound, threshold),
    )


def _accepted(scores: NDArray[np.float64], threshold: float) -> float:
    """Share of scores that are not certainly above γ."""
    return float(1 - (scores > threshold).mean())


def _array(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise CertoodError(f"expected a non-empty 1-d array of {name} scores, got shape {array.shape}")
    return array


def _same(*arrays: NDArray[np.float64]) -> None:
    if len({len(array) for array in arrays}) > 1:
        raise CertoodError(f"expected as many clean, attacked and bound scores, got {[len(array) for array in arrays]}")
