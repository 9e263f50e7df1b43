"""Certified metrics on cases by hand, and the order GAUC ≤ AAUC ≤ AUC."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certood.analysis.certified_metrics import strict_auc, threat_metrics
from certood.errors import CertoodError

SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


def test_by_hand() -> None:
    found = threat_metrics([0, 1, 2], [3, 1.5], [2.5, 0.5], [2, -1], 1.5)
    assert found.auc == pytest.approx(5 / 6)
    assert found.aauc == pytest.approx(4 / 6)
    assert found.gauc == pytest.approx(2 / 6)  # the tie 2 = 2 counts against the detector
    assert (found.fpr95, found.afpr95, found.gfpr95) == (0.5, 0.5, 0.5)


def test_a_bound_is_never_better_than_the_attack_by_hand() -> None:
    """Bounds on the wrong side of attacked and clean scores, by rounding, count as those."""
    found = threat_metrics([0, 1], [3], [2], [2.5], 1.5, attacked_id=[2.2, 1], bound_id=[0, 0.5])
    assert (found.auc, found.aauc, found.gauc) == (1, 0.5, 0.5)
    assert threat_metrics([2], [3], [2.5], [2.5], 0, attacked_id=[1], bound_id=[1]).gauc == 1
    assert threat_metrics([2.5], [3], [2.5], [2.5], 0, attacked_id=[1], bound_id=[1]).aauc == 0
    # An attack that made an outlier's score higher has not helped the detector.
    found = threat_metrics([0], [-1], [5], [-2], 4, attacked_id=[0], bound_id=[0])
    assert (found.aauc, found.afpr95) == (found.auc, found.fpr95) == (0, 1)


def test_what_nothing_is_known_about_gets_nothing() -> None:
    found = threat_metrics([0, 1], [3, 4], [2, 2], [-math.inf, math.nan], 1)
    # An attack is an estimate, and guarantees nothing where no bound is known.
    assert (found.aauc, found.gauc, found.gfpr95) == (1, 0, 1)
    both = threat_metrics([0, 1], [3, 4], [2, 2], [2, 2], 1, attacked_id=[0.5, 1], bound_id=[math.nan, 1])
    assert (both.aauc, both.gauc) == (1, 0.5)
    # Where nothing was attacked the clean score is the worst that was found.
    assert threat_metrics([0], [3], [math.nan], [2], 1).aauc == 1
    lost = threat_metrics([0, 1], [3, 4], [2, 2], [-math.inf, -math.inf], 1)
    assert (lost.auc, lost.gauc, lost.gfpr95) == (1, 0, 1)


@settings(max_examples=200, deadline=None)
@given(SCORES, st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=12))
def test_guaranteed_is_below_attacked_is_below_clean(
    inside: list[float], outside: list[tuple[float, float, float]]
) -> None:
    clean = [one for one, _, _ in outside]
    attacked = [one - two for one, two, _ in outside]
    bound = [one - two - three for one, two, three in outside]
    one = threat_metrics(inside, clean, attacked, bound, 0.0)
    both = threat_metrics(
        inside, clean, attacked, bound, 0.0, attacked_id=[x + 0.5 for x in inside], bound_id=[x + 1 for x in inside]
    )
    for found in (one, both):
        assert found.gauc <= found.aauc <= found.auc
        assert found.fpr95 <= found.afpr95 <= found.gfpr95
    assert both.aauc <= one.aauc
    assert both.gauc <= one.gauc


@settings(max_examples=100, deadline=None)
@given(SCORES, SCORES)
def test_the_strict_auc_by_counting(inside: list[float], outside: list[float]) -> None:
    expected = np.mean([[out > ins for ins in inside] for out in outside])
    assert strict_auc(inside, outside) == pytest.approx(expected)


def test_bad_input() -> None:
    with pytest.raises(CertoodError, match="non-empty"):
        threat_metrics([], [1], [1], [1], 0)
    with pytest.raises(CertoodError, match="as many clean"):
        threat_metrics([0], [1, 2], [1], [1], 0)
