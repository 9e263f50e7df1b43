"""Smooth activations that bend, by bounds of their second derivatives: erf, mish, GELU by tanh."""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations.activations import Activation
from certood.analysis.bounds.operations.derivatives import bell_slopes, sampled_slopes
from certood.analysis.bounds.operations.relaxations import Function, smooth_relaxation


def _bent(name: str, function: Function, derivative: Function, curvature: float, minimum: float) -> Activation:
    """A function with one minimum and |f''| ≤ curvature."""

    def bound(lower: Tensor, upper: Tensor) -> Tensor:
        return torch.full_like(lower, curvature)

    return Activation(
        name,
        function,
        partial(smooth_relaxation, function, bound),
        partial(sampled_slopes, derivative, curvature),
        (minimum,),
    )


# |erf''| = 4|x|exp(−x²)/√π, at most 4exp(−1/2)/√(2π) = 0.96788, at 1/√2
ERF = Activation(
    "erf",
    torch.erf,
    partial(smooth_relaxation, torch.erf, lambda lower, upper: torch.full_like(lower, 0.968)),
    partial(bell_slopes, lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x.square())),
    limits=(-1.0, 1.0),
)


def _mish_slope(x: Tensor) -> Tensor:
    bent = torch.tanh(F.softplus(x))
    return bent + x * torch.sigmoid(x) * (1 - bent.square())


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    factor = math.sqrt(2 / math.pi)
    bent = torch.tanh(factor * (x + 0.044715 * x**3))
    return 0.5 * (1 + bent) + 0.5 * x * (1 - bent.square()) * factor * (1 + 3 * 0.044715 * x.square())


# x·tanh(softplus(x)): |f''| is at most 0.645, near −0.1; its minimum is at −1.1924
MISH = _bent("mish", F.mish, _mish_slope, 0.65, -1.192431214515495)
# |f''| is largest at 0, where it is 2√(2/π) = 0.79789
GELU_TANH = _bent("gelu_tanh", partial(F.gelu, approximate="tanh"), _gelu_tanh_slope, 0.8, -0.7524614220710163)
