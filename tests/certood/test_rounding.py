"""Directed rounding against exact rationals and mpmath."""

from decimal import Decimal
from fractions import Fraction

import mpmath
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from certood.rounding import (
    box_within,
    decimal_text,
    dyadic_simplex,
    entropy_below,
    exp_enclosure,
    float32_above,
    float32_below,
    float32_beyond,
    log_enclosure,
)

mpmath.mp.dps = 120
NUMBERS = st.one_of(
    st.floats(-1e30, 1e30),
    st.fractions(-10, 10, max_denominator=10**9),
    st.decimals(-100, 100, allow_nan=False, places=30),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(NUMBERS)
@example(float(np.finfo(np.float32).max))
@example(-float(np.finfo(np.float32).max))
@example(1e300)
@example(-1e300)
def test_neighbours_of_float32(value: float | Fraction | Decimal) -> None:
    exact = Fraction(value)
    below, above, beyond = float32_below(value), float32_above(value), float32_beyond(value)
    assert all(float(np.float32(found)) == found for found in (below, above, beyond))
    # A fraction and a float, infinities included, are compared exactly.
    assert below <= exact <= above
    assert exact < beyond
    # None lies between.
    assert float(np.nextafter(np.float32(below), np.float32(np.inf))) > exact
    assert float(np.nextafter(np.float32(above), np.float32(-np.inf))) < exact
    assert float(np.nextafter(np.float32(beyond), np.float32(-np.inf))) <= exact


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_decimal_text_is_the_number(value: float) -> None:
    text = decimal_text(value)
    assert Fraction(text) == Fraction(value)
    assert "." in text
    assert "e" not in text.lower()


def mp(value: Decimal | Fraction | float) -> mpmath.mpf:
    exact = Fraction(value)
    return mpmath.mpf(exact.numerator) / mpmath.mpf(exact.denominator)


@given(st.one_of(st.floats(1e-300, 1e300), st.fractions(Fraction(1, 10**6), 10**6)))
def test_logarithms_are_enclosed(value: float | Fraction) -> None:
    lower, upper = log_enclosure(value)
    true = mpmath.log(mp(value))
    assert mp(lower) < true < mp(upper)
    assert upper - lower <= Decimal("1e-50")


@given(st.one_of(st.floats(-700, 700), st.fractions(-100, 100)))
def test_exponentials_are_enclosed(value: float | Fraction) -> None:
    lower, upper = exp_enclosure(value)
    true = mpmath.exp(mp(value))
    assert mp(lower) < true < mp(upper)
    assert upper - lower <= Decimal("1e-50") * upper


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12).filter(lambda weights: sum(weights) > 0.1))
@settings(max_examples=50)
def test_dyadic_weights_and_their_entropy(weights: list[float]) -> None:
    found = dyadic_simplex(weights)
    assert sum(found) == 1
    assert all(weight >= 0 and float(np.float32(weight)) == weight for weight in found)
    for weight, given_one in zip(found, weights, strict=True):
        assert abs(float(weight) - given_one / sum(weights)) <= len(weights) * 2.0**-20
    true = -sum(mp(weight) * mpmath.log(mp(weight)) for weight in found if weight)
    assert 0 <= true - mp(entropy_below(found)) < mpmath.mpf(10) ** -50


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6), st.one_of(st.floats(1e-12, 1), st.sampled_from([0.02]))
)
def test_a_box_within_a_ball(pixels: list[float], radius: float) -> None:
    centre = np.array(pixels, dtype=np.float32)
    lower, upper = box_within(centre, radius)
    assert lower.dtype == upper.dtype == np.float32
    for low, middle, high in zip(lower.tolist(), centre.tolist(), upper.tolist(), strict=True):
        least, most = max(Fraction(middle) - Fraction(radius), 0), min(Fraction(middle) + Fraction(radius), 1)
        assert least <= Fraction(low) <= Fraction(middle) <= Fraction(high) <= most
        # Hardly smaller than the ball: two units in the last place of float32.
        assert Fraction(low) - least <= 2 * Fraction(float(np.spacing(np.float32(max(low, 1e-30)))))
        assert most - Fraction(high) <= 2 * Fraction(float(np.spacing(np.float32(high))) + 2.0**-53)
