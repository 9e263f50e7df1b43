"""Whether a decision is kept over a ball: −T·logsumexp(f/T) ≤ γ or > γ, from linear bounds of rows of the logits f.

In decimals of sixty digits where logarithms and exponentials enter. T = 0 is the maximum in place of T·logsumexp(f/T).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np

from certood.checking.steps import Array
from certood.rounding import entropy_below, exp_enclosure, log_enclosure

Lower = Callable[[Array], Array]
# Where the tangent of the logarithm touches, as multiples of the value in the middle of the box.
REFERENCES = (1.0, 1.6, 2.6)
# Multiples of T by which a logit may exceed another for chords of their exponentials; further the largest logit is as good.
EXPONENT = 600


def accepted_margin(
    lower: Lower, outputs: int, weights: Sequence[float], threshold: float, temperature: float
) -> Fraction:
    """A lower bound of γ − S, by T·LSE(f/T) ≥ p·f + T·H(p) for weights p of the simplex (K,) of the first K outputs.

    Raises ValueError where the weights are not at least 0, or do not sum to one exactly.
    """
    exact = [Fraction(weight) for weight in weights]
    if min(exact) < 0 or sum(exact) != 1:
        raise ValueError("the weights do not sum to one, or one is negative")
    row = np.zeros((1, outputs))
    row[0, : len(weights)] = weights
    bound = float(lower(row)[0])
    if not np.isfinite(bound):
        return Fraction(-1)
    entropy = Fraction(temperature) * (Fraction(entropy_below(exact)) if temperature else 0)
    return Fraction(bound) + entropy + Fraction(threshold)


def rejected_margin(
    lower: Lower, last: Lower, outputs: int, classes: int, threshold: float, temperature: float
) -> Fraction:
    """A lower bound of S − γ: the best of several upper bounds of T·LSE(f/T) over the first `classes` outputs.

    `lower` bounds logits and their differences, `last` the linear functions above T·LSE(f/T) that are made of these.
    """
    units = np.eye(outputs)[:classes]
    upper, least = -lower(-units), lower(units)
    if not (np.isfinite(upper).all() and np.isfinite(least).all()):
        return Fraction(-1)
    if not temperature:
        return -Fraction(float(upper.max())) - Fraction(threshold)
    top = int(np.argmax(upper + least))
    others = units - units[top]
    highest, lowest = -lower(-others), lower(others)
    # f_top − f_top is zero, whatever linear bounds say.
    highest[top] = lowest[top] = 0.0
    candidates = [_logsumexp_above(upper, temperature)]
    chords = list(_chord_rows(least, upper, units, None, Fraction(), temperature))
    if np.isfinite(highest).all() and np.isfinite(lowest).all():
        candidates.append(Fraction(float(upper[top])) + _logsumexp_above(highest, temperature))
        size = Fraction(float(max(abs(upper[top]), abs(least[top]))))
        chords += _chord_rows(lowest, highest, units, top, size, temperature)
    rows, constants = zip(*chords, strict=True)
    bounds = -last(-np.stack(rows))
    candidates += [
        Fraction(float(bound)) + constant
        for bound, constant in zip(bounds, constants, strict=True)
        if np.isfinite(bound)
    ]
    return -min(candidates) - Fraction(threshold)


def _logsumexp_above(values: Array, temperature: float) -> Fraction:
    """An upper bound of T·log Σ exp(v/T)."""
    highest = Fraction(float(values.max()))
    total = sum((Fraction(_exp(Fraction(value) - highest, temperature)[1]) for value in values.tolist()), Fraction())
    return highest + Fraction(temperature) * Fraction(log_enclosure(total)[1])


def _exp(value: Fraction, temperature: float) -> tuple[Decimal, Decimal]:
    """Bounds of exp(value/T); far below 0, where they are no longer of use, 0 and a small number."""
    scaled = value / Fraction(temperature)
    return (Decimal(0), Decimal("1e-400")) if scaled < -1000 else exp_enclosure(scaled)


def _chord_rows(
    lowest: Array, highest: Array, units: Array, top: int | None, size: Fraction, temperature: float
) -> Iterator[tuple[Array, Fraction]]:
    """Linear functions row·f + constant ≥ T·LSE(f/T), where f_j − f_top lies in [lowest, highest] and |f_top| ≤ size.

    Without `top` the f_j themselves lie there, and the largest end takes the place of f_top. With d_j = (f_j − f_top)/T:
    e^d ≤ a·d + b on its interval for the chord, and for every a if b is such at both ends, since e^d is convex. Then
    T·LSE(f/T) = f_top + T·log Σ e^d ≤ f_top + T·(log w + (Σ(a·d + b) − w)/w) for every w > 0. Rows are rounded to float64; what
    that may change goes into the constants. There are none where an exponential is too large for float64.
    """
    base = Fraction(float(highest.max())) if top is None else Fraction()
    scale = Fraction(temperature)
    ends = [
        (Fraction(low) - base, Fraction(high) - base)
        for low, high in zip(lowest.tolist(), highest.tolist(), strict=True)
    ]
    if max(high for _, high in ends) > EXPONENT * scale:
        return
    slopes, shift, start = [], Fraction(), 0.0
    for low, high in ends:
        values = [Fraction(_exp(end, temperature)[1]) for end in (low, high)]
        slope = Fraction(float((values[1] - values[0]) * scale / (high - low))) if high > low else Fraction()
        slopes.append(slope)
        shift += max(value - slope * end / scale for value, end in zip(values, (low, high), strict=True))
        start += math.exp(max((low + high) / 2 / scale, Fraction(-EXPONENT)))
    for factor in REFERENCES:
        level = Fraction(factor * start)
        constant = scale * (Fraction(log_enclosure(level)[1]) + (shift - level) / level) + base
        row, rest = np.zeros_like(units[0]), Fraction(1)
        for place, slope in enumerate(slopes):
            if place != top:
                rounded = Fraction(float(slope / level))
                row += float(rounded) * units[place]
                rest -= rounded
                constant += abs(slope / level - rounded) * max(map(abs, ends[place])) - rounded * base
        if top is not None:
            row += float(rest) * units[top]
            constant += abs(rest - Fraction(float(rest))) * size
        yield row, constant
