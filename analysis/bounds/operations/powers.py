"""Powers, roots, reciprocals and the logarithm: convex or concave on every box of their domains, or odd."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.partial import (
    PartialActivation,
    curved,
    everywhere,
    not_negative,
    one_sign,
    positive,
)

SQUARE = curved(
    "square",
    torch.square,
    lambda x: 2 * x,
    lambda slope: [slope / 2],
    everywhere,
    minima=(0.0,),
    limits=(0.0, math.inf),
)
SQRT = curved(
    "sqrt",
    torch.sqrt,
    lambda x: 0.5 / torch.sqrt(x),
    lambda slope: [0.25 / slope.square()],
    not_negative,
    limits=(0.0, math.inf),
)
RSQRT = curved(
    "rsqrt",
    torch.rsqrt,
    lambda x: -0.5 * x**-1.5,
    lambda slope: [(-2 * slope) ** (-2 / 3)],
    positive,
    limits=(0.0, math.inf),
)
LOG = curved("log", torch.log, torch.reciprocal, lambda slope: [1 / slope], positive)
RECIPROCAL = curved(
    "reciprocal",
    torch.reciprocal,
    lambda x: -1 / x.square(),
    lambda slope: [(-slope) ** -0.5, -((-slope) ** -0.5)],
    one_sign,
)


def power(exponent: float) -> PartialActivation:
    """xᵖ for p > 1, or 0 < p < 1 where x ≥ 0: for all x where p is whole."""
    name = f"pow_{exponent:g}"
    whole = exponent == int(exponent)

    def function(x: Tensor) -> Tensor:
        return torch.pow(x, exponent)

    def derivative(x: Tensor) -> Tensor:
        return exponent * torch.pow(x, exponent - 1)

    def turning(slope: Tensor) -> Sequence[Tensor]:
        share = slope / exponent
        if whole and exponent % 2 == 0:
            return [share.sign() * share.abs() ** (1 / (exponent - 1))]
        root = share.clamp_min(0) ** (1 / (exponent - 1))
        return [root, -root] if whole else [root]

    if not whole:
        return curved(name, function, derivative, turning, not_negative, limits=(0.0, math.inf))
    if exponent % 2 == 0:
        return curved(name, function, derivative, turning, everywhere, minima=(0.0,), limits=(0.0, math.inf))
    found = curved(name, function, derivative, turning, everywhere)

    def slopes(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        low, high = found.slopes(lower, upper)
        # The derivative of an odd power is least at 0.
        return torch.where((lower <= 0) & (upper >= 0) & low.isfinite(), 0.0, low), high

    return PartialActivation(name, function, found.relaxation, slopes, domain=everywhere)
