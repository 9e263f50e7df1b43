"""Sufficient conditions on logits: where they hold the decision holds, by mpmath; and they are as wide as their formulas say."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certood.scores import MSP, Energy, MaxLogit, Score
from certood.scores.base import FirstOutputs

mpmath.mp.dps = 60
LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=6)
SCORES = (Energy(), Energy(0.7), Energy(3.0), MaxLogit())


def exact(score: Score, logits: list[float]) -> mpmath.mpf:
    """The score in sixty digits."""
    if isinstance(score, MaxLogit):
        return -mpmath.mpf(max(logits))
    assert isinstance(score, Energy)
    temperature = mpmath.mpf(score.temperature)
    return -temperature * mpmath.log(sum(mpmath.exp(mpmath.mpf(value) / temperature) for value in logits))


def least(score: Score, at: list[float], logits: list[float], threshold: float, *, accepted: bool) -> mpmath.mpf:
    """The smallest row·f + constant of the condition made at some logits, for others."""
    found = score.condition(at, threshold, accepted=accepted)
    assert found is not None
    for number in (*found.constants, *(value for row in found.rows for value in row)):
        assert float(np.float32(number)) == number
    return min(
        sum(mpmath.mpf(weight) * mpmath.mpf(value) for weight, value in zip(row, logits, strict=True)) + constant
        for row, constant in zip(found.rows, found.constants, strict=True)
    )


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.label)
@given(at=LOGITS, changes=st.lists(st.floats(-3, 3), min_size=6, max_size=6), shift=st.floats(-1e-5, 1e-5))
def test_a_condition_that_holds_decides(score: Score, at: list[float], changes: list[float], shift: float) -> None:
    logits = [value + change for value, change in zip(at, changes, strict=False)]
    for accepted in (True, False):
        # The threshold at which the condition is about to fail: constants move with γ.
        margin = least(score, at, logits, 0.0, accepted=accepted)
        threshold = float(-margin if accepted else margin) + shift
        if least(score, at, logits, threshold, accepted=accepted) > 0:
            assert (exact(score, logits) <= threshold) == accepted


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.label)
@given(at=LOGITS)
def test_a_condition_is_not_wider_than_its_formula(score: Score, at: list[float]) -> None:
    # At the image the tangent touches, up to the rounding of p to multiples of 2^-20.
    value = exact(score, at)
    loss = float(-least(score, at, at, float(value), accepted=True))
    # γ is the score rounded to float64.
    assert -1e-14 * (1 + abs(value)) <= loss < 1e-4
    temperature = score.temperature if isinstance(score, Energy) else 0
    expected = value - (-max(at) - temperature * math.log(len(at)))
    assert float(least(score, at, at, float(value), accepted=False)) == pytest.approx(-float(expected), abs=1e-4)


def test_scores_without_a_condition_and_outputs_that_do_not_enter() -> None:
    assert MSP().condition([1.0, 2.0], -0.5, accepted=True) is None
    assert FirstOutputs(MSP(), 2).condition([1.0, 2.0, 9.0], -0.5, accepted=True) is None
    whole = FirstOutputs(Energy(), 2).condition([1.0, 2.0, 9.0], -0.5, accepted=False)
    assert whole is not None
    assert whole.rows == ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
    assert whole.constants == Energy().condition([1.0, 2.0], -0.5, accepted=False).constants
