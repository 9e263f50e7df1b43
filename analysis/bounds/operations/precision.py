"""How much floating-point arithmetic may differ from exact arithmetic (Higham, Accuracy and Stability of Numerical Algorithms,
section 3), and intervals that are widened by it.

A sum of n products differs from the exact one by at most γₙΣ|aᵢbᵢ|, γₙ = nu/(1 − nu), in any order of summation, u being the
unit roundoff; what is smaller than the least normal number may be flushed to zero, product by product.
"""

import math

import torch
from torch import Tensor

# Unit roundoffs. Intervals in shorter formats serve training, not certificates, and are not widened.
UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
# Of an interval whose ends are computed from n summed products: both products of centre and radius, and second order.
SAFETY = 2.02
EXTRA = 8


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding, 0 where nothing is to be counted."""
    return UNITS.get(dtype, 0.0)


def least_normal(dtype: torch.dtype) -> float:
    """What a product may lose by underflow, 0 where nothing is to be counted."""
    return torch.finfo(dtype).tiny if dtype in UNITS else 0.0


def relative_error(terms: int, dtype: torch.dtype) -> float:
    """c such that c·Σ|aᵢbᵢ| covers all rounding in both ends of an interval of a sum of so many products."""
    return SAFETY * (terms + EXTRA) * unit_roundoff(dtype)


def underflow(terms: int, dtype: torch.dtype) -> float:
    """What underflow may cost an end of an interval of a sum of so many products."""
    return 2 * (terms + EXTRA) * least_normal(dtype)


def largest(lower: Tensor, upper: Tensor) -> Tensor:
    """The largest magnitude in an interval."""
    return torch.maximum(lower.abs(), upper.abs())


def outward_sum(one: Tensor, two: Tensor) -> Tensor:
    """one + two, rounded down, in float64."""
    total = one + two
    return torch.nextafter(total, total.new_full((), -math.inf))


def widened(lower: Tensor, upper: Tensor, magnitude: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """An interval moved outwards by the rounding of so many products, whose absolute values sum to `magnitude`."""
    if lower.dtype not in UNITS:
        return lower, upper
    slack = relative_error(terms, lower.dtype) * magnitude + underflow(terms, lower.dtype)
    return lower - slack, upper + slack
