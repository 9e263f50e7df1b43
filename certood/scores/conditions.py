"""Sufficient conditions of a decision on the logits alone, for verifiers that know no logsumexp.

A condition says nothing where it fails: a counterexample to it refutes only the condition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from certood.rounding import CONTEXT, decimal_of, dyadic_simplex, entropy_below, float32_below, log_enclosure


@dataclass(frozen=True)
class LogitCondition:
    """A decision is kept where row·f + constant > 0 for every row; `formula` says so in words.

    Rows (M, K) and constants (M,) are numbers of float32, rounded to the side on which the condition is sufficient.
    """

    rows: tuple[tuple[float, ...], ...]
    constants: tuple[float, ...]
    formula: str


def logsumexp_condition(
    logits: Sequence[float], threshold: float, temperature: float, *, accepted: bool
) -> LogitCondition:
    """Of −T·logsumexp(f/T) ≤ γ where accepted, else > γ; `logits` (K,) are those at the image.

    Accepted: T·LSE(f/T) ≥ p·f + T·H(p) for every p of the simplex, so p·f + T·H(p) ≥ −γ suffices, with p = softmax(f/T) at the
    image, as multiples of 2⁻²⁰. Rejected: T·LSE(f/T) ≤ max f + T·log K, so max f < −γ − T·log K suffices. With T = 0 it is the
    maximum in place of T·LSE(f/T), p is one at the largest logit, and both are necessary too, up to rounding.
    """
    count, level, factor = len(logits), Decimal(threshold), decimal_of(temperature)
    if accepted:
        weights = dyadic_simplex(_softmax(logits, temperature))
        constant = CONTEXT.add(CONTEXT.multiply(factor, entropy_below(weights)), level)
        formula = "p·f + T·H(p) ≥ −γ" if temperature else "f_k ≥ −γ for the largest logit k at the image"
        return LogitCondition((tuple(map(float, weights)),), (_below(constant),), formula)
    spread = CONTEXT.multiply(factor, log_enclosure(count)[1])
    constant = CONTEXT.subtract(-level, spread)
    rows = tuple(tuple(-1.0 if place == own else 0.0 for place in range(count)) for own in range(count))
    formula = "max f < −γ − T·log K" if temperature else "max f < −γ"
    return LogitCondition(rows, (_below(constant),) * count, formula)


def _below(constant: Decimal) -> float:
    """A number of float32 below, by more than sixty digits may have lost."""
    return float32_below(Fraction(constant) - Fraction(1, 10**40) * (1 + abs(Fraction(constant))))


def _softmax(logits: Sequence[float], temperature: float) -> list[float]:
    top = max(logits)
    if not temperature:
        first = list(logits).index(top)
        return [float(place == first) for place in range(len(logits))]
    return [math.exp((value - top) / temperature) for value in logits]
