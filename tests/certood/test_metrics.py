"""Metrics against scikit-learn and direct counts, with heavy ties and constant scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from certood.errors import CertoodError
from certood.metrics import aupr_in, aupr_out, auroc, bootstrap_interval, fpr_at_threshold, threshold_at_tpr

tied = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)
spread = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def average_precision(positive: list[float], negative: list[float]) -> float:
    """Σ (Rₙ − Rₙ₋₁) Pₙ, counted at every threshold from the highest on."""
    area, recall = 0.0, 0.0
    for threshold in sorted({*positive, *negative}, reverse=True):
        true = sum(score >= threshold for score in positive)
        found = true + sum(score >= threshold for score in negative)
        area += (true / len(positive) - recall) * true / found
        recall = true / len(positive)
    return area


@given(st.one_of(tied, spread), st.one_of(tied, spread))
@settings(max_examples=150, deadline=None)
def test_ranking_metrics_are_scikit_learns_and_those_of_direct_counts(
    inside: list[float], outside: list[float]
) -> None:
    scores = np.array(inside + outside)
    is_ood = np.array([0] * len(inside) + [1] * len(outside))
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(is_ood, scores), abs=1e-12)
    assert aupr_out(inside, outside) == pytest.approx(average_precision(outside, inside), abs=1e-12)
    assert aupr_in(inside, outside) == pytest.approx(
        average_precision([-score for score in inside], [-score for score in outside]), abs=1e-12
    )


def test_constant_scores_and_perfect_separation() -> None:
    assert auroc([1, 1, 1], [1, 1]) == 0.5
    assert auroc([0, 1], [2, 3]) == 1
    assert auroc([2, 3], [0, 1]) == 0
    assert aupr_out([1, 1, 1], [1]) == 0.25


@given(st.one_of(tied, spread), st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_the_threshold_is_the_smallest_that_accepts_enough(inside: list[float], tpr: float) -> None:
    threshold = threshold_at_tpr(inside, tpr)
    values = np.array(inside)
    assert (values <= threshold).mean() >= tpr - 1e-9
    smaller = values[values < threshold]
    if smaller.size:
        assert (values <= smaller.max()).mean() < tpr


def test_the_threshold_of_twenty_accepts_nineteen() -> None:
    assert threshold_at_tpr(range(20)) == 18
    assert threshold_at_tpr([5.0]) == 5


def test_fpr_counts_accepted_outliers_ties_included() -> None:
    assert fpr_at_threshold([1, 2, 3, 4], 2) == 0.5


def test_the_bootstrap_interval_covers_and_repeats() -> None:
    generator = np.random.default_rng(0)
    inside, outside = generator.normal(0, 1, 300), generator.normal(1, 1, 300)
    low, high = bootstrap_interval(auroc, inside, outside, samples=300, seed=1)
    assert low < auroc(inside, outside) < high
    assert 0.02 < high - low < 0.12
    assert (low, high) == bootstrap_interval(auroc, inside, outside, samples=300, seed=1)


def test_one_image_has_no_bootstrap_interval() -> None:
    with pytest.raises(CertoodError, match="two ID and two OOD images, got 1 and 2"):
        bootstrap_interval(auroc, [1], [1, 2])


@pytest.mark.parametrize(("confidence", "deviations"), [(0.95, 1.960), (0.8, 1.282)])
def test_the_bootstrap_interval_has_the_confidence_that_is_asked_for(confidence: float, deviations: float) -> None:
    """Of a mean, whose resamplings are normal with the deviation σ/√n."""
    inside = np.random.default_rng(0).normal(0, 1, 400)

    def mean(inside: ArrayLike, outside: ArrayLike) -> float:
        return float(np.mean(inside))

    low, high = bootstrap_interval(mean, inside, [0.0, 0.0], samples=4000, confidence=confidence, seed=1)
    reach = deviations * inside.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((inside.mean() - reach, inside.mean() + reach), abs=0.1 * reach)


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], "non-empty 1-d array of ID scores"),
        ([1.0], [[1.0]], "1-d array of OOD scores"),
        ([1.0], [np.nan, 1.0], "1 of 2 OOD scores are not finite"),
        ([np.inf], [1.0], "1 of 1 ID scores"),
    ],
)
def test_what_is_not_a_score_is_refused(inside: list[float], outside: list[float], message: str) -> None:
    for metric in (auroc, aupr_in, aupr_out):
        with pytest.raises(CertoodError, match=message):
            metric(inside, outside)


def test_a_share_outside_its_range_is_refused() -> None:
    with pytest.raises(CertoodError, match="0 < tpr <= 1, got 0"):
        threshold_at_tpr([1.0], 0)
