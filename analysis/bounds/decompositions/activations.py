"""Activation functions made of others."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.decompositions.table import decomposes

# Where softplus becomes a straight line: far beyond what float64 tells apart.
FAR = 500.0


@decomposes("elu")
def elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """scale·(relu(x) + α(exp(input_scale·min(x, 0)) − 1)), for any α: both terms are bounded by themselves."""
    if 0 < alpha <= 1 and scale == 1 and input_scale == 1:
        return NotImplemented
    return scale * x.relu() + scale * alpha * (torch.exp(input_scale * x.clamp(max=0.0)) - 1)


@decomposes("selu")
def selu(x: Tensor) -> Tensor:
    """A scaled ELU (Klambauer et al., NeurIPS 2017, arXiv 1706.02515)."""
    return elu(x, 1.6732632423543772, 1.0507009873554805)


@decomposes("celu")
def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """relu(x) + α(exp(min(x, 0)/α) − 1)."""
    return elu(x, alpha, 1.0, 1 / alpha) if alpha != 1 else F.elu(x)


@decomposes("prelu", "_prelu_kernel")
def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """relu(x) − w·relu(−x), with w along the channels."""
    if weight.numel() > 1 and x.ndim > 1 and weight.ndim == 1:
        weight = weight.view(-1, *[1] * (x.ndim - 2))
    return x.relu() - weight * (-x).relu()


@decomposes("log_sigmoid", "log_sigmoid_forward")
def log_sigmoid(x: Tensor) -> Tensor:
    """−softplus(−x)."""
    return -F.softplus(-x, 1.0, FAR)


@decomposes("glu")
def glu(x: Tensor, dim: int = -1) -> Tensor:
    """GLU: one half of an axis times the sigmoid of the other half."""
    first, second = x.chunk(2, dim)
    return first * torch.sigmoid(second)


@decomposes("softshrink")
def softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """x, moved towards 0 by λ."""
    return x - x.clamp(-lambd, lambd)


@decomposes("rrelu")
def rrelu(
    x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: object = None
) -> Any:
    """RReLU, which is a leaky ReLU in eval mode."""
    return NotImplemented if training else F.leaky_relu(x, (lower + upper) / 2)


@decomposes("expm1")
def expm1(x: Tensor) -> Tensor:
    """exp(x) − 1."""
    return torch.exp(x) - 1


@decomposes("exp2")
def exp2(x: Tensor) -> Tensor:
    """exp(x·log 2)."""
    return torch.exp(math.log(2) * x)


@decomposes("log1p")
def log1p(x: Tensor) -> Tensor:
    """log(1 + x)."""
    return torch.log(1 + x)


@decomposes("log2")
def log2(x: Tensor) -> Tensor:
    """log(x)/log 2."""
    return torch.log(x) / math.log(2)


@decomposes("log10")
def log10(x: Tensor) -> Tensor:
    """log(x)/log 10."""
    return torch.log(x) / math.log(10)


@decomposes("erfc")
def erfc(x: Tensor) -> Tensor:
    """1 − erf(x)."""
    return 1 - torch.erf(x)
