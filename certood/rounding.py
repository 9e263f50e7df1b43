"""Directed rounding: numbers of float32 on a given side of a real number, and logarithms and exponentials enclosed by decimals.

Real numbers are `Decimal` or `Fraction` here; every float is one exactly.
"""

import decimal
import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

# Decimals of so many digits; `ln` and `exp` of the decimal module are correctly rounded to them.
DIGITS = 60
UNIT = Decimal(10) ** (5 - DIGITS)
CONTEXT = decimal.Context(prec=DIGITS, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
LARGEST = float(np.finfo(np.float32).max)

Real = Decimal | Fraction | float


def float32_below(value: Real) -> float:
    """The largest number of float32 that is at most `value`; minus infinity below all of them."""
    exact = Fraction(value)
    if exact < -Fraction(LARGEST):
        return -math.inf
    found = np.float32(min(float(exact), LARGEST))
    while Fraction(float(found)) > exact:
        found = np.nextafter(found, np.float32(-math.inf))
    while (above := np.nextafter(found, np.float32(math.inf))) <= LARGEST and Fraction(float(above)) <= exact:
        found = above
    return float(found)


def float32_above(value: Real) -> float:
    """The smallest number of float32 that is at least `value`; infinity above all of them."""
    return -float32_below(-Fraction(value))


def float32_beyond(value: Real) -> float:
    """The smallest number of float32 that is greater than `value`."""
    found = float32_above(value)
    return found if found > Fraction(value) else float(np.nextafter(np.float32(found), np.float32(math.inf)))


def decimal_text(value: float) -> str:
    """A finite float as a decimal number that equals it, with a point and without an exponent."""
    text = format(Decimal(value), "f")
    return text if "." in text else f"{text}.0"


def decimal_of(value: Real) -> Decimal:
    """A number as a decimal of `DIGITS` digits, exactly where it has no more."""
    exact = Fraction(value)
    return CONTEXT.divide(Decimal(exact.numerator), Decimal(exact.denominator))


def log_enclosure(value: Real) -> tuple[Decimal, Decimal]:
    """A lower and an upper bound of log(value), value > 0."""
    found = CONTEXT.ln(decimal_of(value))
    slack = CONTEXT.multiply(UNIT, CONTEXT.add(1, abs(found)))
    return CONTEXT.subtract(found, slack), CONTEXT.add(found, slack)


def exp_enclosure(value: Real) -> tuple[Decimal, Decimal]:
    """A lower and an upper bound of exp(value), for |value| below 10⁶."""
    argument = decimal_of(value)
    found = CONTEXT.exp(argument)
    # The argument was rounded too, which matters by its size.
    slack = CONTEXT.multiply(found, CONTEXT.multiply(UNIT, CONTEXT.add(1, abs(argument))))
    return CONTEXT.subtract(found, slack), CONTEXT.add(found, slack)


def dyadic_simplex(weights: Sequence[float], bits: int = 20) -> list[Fraction]:
    """Multiples of 2^−bits near these weights ≥ 0 that sum to one exactly; each is a number of float32 up to 24 bits."""
    scale = 1 << bits
    total = sum(weights)
    found = [int(scale * weight / total) for weight in weights]
    largest = max(range(len(found)), key=found.__getitem__)
    found[largest] += scale - sum(found)
    return [Fraction(count, scale) for count in found]


def entropy_below(weights: Sequence[Fraction]) -> Decimal:
    """A lower bound of the entropy −Σ w log w of weights that sum to one."""
    total = Decimal(0)
    for weight in weights:
        if weight > 0:
            _, upper = log_enclosure(weight)
            total = CONTEXT.subtract(total, CONTEXT.multiply(decimal_of(weight), upper))
    return CONTEXT.subtract(total, CONTEXT.multiply(UNIT, len(weights)))


def box_within(centre: NDArray[np.float32], radius: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The ends of a box inside {x : |x − centre| ≤ radius} ∩ [0, 1]^d that has the centre in it; all are numbers of float32.

    Each end is within two units in the last place of where the larger box ends.
    """
    middle = centre.astype(np.float64)
    # One unit inwards covers the rounding of the difference; the conversion to float32 goes inwards as well.
    low = np.maximum(np.nextafter(middle - radius, np.inf), 0)
    high = np.minimum(np.nextafter(middle + radius, -np.inf), 1)
    lower, upper = low.astype(np.float32), high.astype(np.float32)
    lower = np.where(lower < low, np.nextafter(lower, np.float32(np.inf)), lower)
    upper = np.where(upper > high, np.nextafter(upper, np.float32(-np.inf)), upper)
    return np.minimum(lower, centre), np.maximum(upper, centre)
