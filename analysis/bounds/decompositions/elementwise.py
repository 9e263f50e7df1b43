"""Arithmetic of two tensors: axes are aligned, and division, minima and powers are made of simpler operations."""

import math
from typing import Any

import torch
from torch import Tensor

from certood.analysis.bounds.decompositions.table import decomposes


def aligned(x: Any, y: Any) -> tuple[Any, Any] | None:
    """Both tensors with as many axes, or None where they have them already or one has none."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.ndim == y.ndim or not min(x.ndim, y.ndim):
        return None
    rank = max(x.ndim, y.ndim)
    return x[(None,) * (rank - x.ndim)], y[(None,) * (rank - y.ndim)]


@decomposes("add")
def add(x: Tensor, y: Any, alpha: float = 1) -> Any:
    """x + αy of tensors with as many axes."""
    both = aligned(x, y)
    return NotImplemented if both is None else torch.add(*both, alpha=alpha)


@decomposes("sub")
def sub(x: Tensor, y: Any, alpha: float = 1) -> Any:
    """x − αy of tensors with as many axes."""
    both = aligned(x, y)
    return NotImplemented if both is None else torch.sub(*both, alpha=alpha)


@decomposes("rsub")
def rsub(x: Tensor, y: Any, alpha: float = 1) -> Any:
    """y − αx."""
    return torch.sub(y, x, alpha=alpha) if isinstance(y, Tensor) else NotImplemented


@decomposes("mul")
def mul(x: Tensor, y: Any) -> Any:
    """x·y of tensors with as many axes."""
    both = aligned(x, y)
    return NotImplemented if both is None else torch.mul(*both)


@decomposes("div", "true_divide")
def div(x: Tensor, y: Any, *, rounding_mode: str | None = None) -> Any:
    """x·(1/y)."""
    if rounding_mode is not None or not isinstance(y, Tensor):
        return NotImplemented
    return x * torch.reciprocal(y)


@decomposes("addcmul")
def addcmul(x: Tensor, y: Tensor, z: Tensor, *, value: float = 1) -> Tensor:
    """x + value·y·z."""
    return x + value * (y * z)


@decomposes("addcdiv")
def addcdiv(x: Tensor, y: Tensor, z: Tensor, *, value: float = 1) -> Tensor:
    """x + value·y/z."""
    return x + value * (y / z)


@decomposes("lerp")
def lerp(x: Tensor, y: Tensor, weight: Any) -> Tensor:
    """x + weight·(y − x)."""
    return x + weight * (y - x)


@decomposes("maximum", "fmax")
def maximum(x: Tensor, y: Tensor) -> Any:
    """max(x, y) of tensors with as many axes."""
    both = aligned(x, y)
    return NotImplemented if both is None else torch.maximum(*both)


@decomposes("minimum", "fmin")
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """−max(−x, −y)."""
    return -torch.maximum(-x, -y)


@decomposes("clamp", "clip", "clamp_min", "clamp_max")
def clamp(x: Tensor, *limits: Any, **named: Any) -> Any:
    """Clamping to tensors: a maximum and a minimum of two."""
    found = dict(zip(("min", "max"), limits, strict=False)) | named
    if not any(isinstance(limit, Tensor) for limit in found.values()):
        return NotImplemented
    low, high = found.get("min"), found.get("max")
    x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))


@decomposes("pow")
def power(x: Any, exponent: Any) -> Any:
    """A constant exponent; a constant base by exp. Negative whole exponents by the reciprocal."""
    if not isinstance(x, Tensor):
        return torch.exp(math.log(x) * exponent) if x > 0 else NotImplemented
    if isinstance(exponent, Tensor):
        return NotImplemented
    if exponent == 0:
        return torch.ones_like(x)
    if exponent == 1:
        return x.clone()
    if exponent < 0:
        return torch.reciprocal(x if exponent == -1 else torch.pow(x, -exponent))
    special = {0.5: torch.sqrt, 2: torch.square}.get(exponent)
    return NotImplemented if special is None else special(x)


@decomposes("logaddexp")
def logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """The logsumexp of both."""
    shape = torch.broadcast_shapes(x.shape, y.shape)
    return torch.stack([part.expand(shape) for part in (x, y)], -1).logsumexp(-1)


@decomposes("where")
def where(condition: Tensor, x: Any, y: Any) -> Any:
    """A choice by a constant condition between tensors with as many axes."""
    both = aligned(x, y)
    return NotImplemented if both is None else torch.where(condition, *both)


@decomposes("masked_fill")
def masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`value` where the mask holds."""
    return torch.where(mask, value, x)
