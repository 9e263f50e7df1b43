"""Reductions along axes of a sample."""

import math
from typing import Any

import torch
from torch import Tensor

from certood.analysis.bounds.decompositions.table import decomposes


def count(x: Tensor, dims: Any) -> int:
    """How many elements are reduced to one."""
    return math.prod(x.shape[dim] for dim in ([dims] if isinstance(dims, int) else dims or ()))


@decomposes("var")
def var(x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None) -> Any:
    """The mean square of what differs from the mean, over n − correction."""
    if dim is None or isinstance(dim, bool) or dim == []:
        return NotImplemented
    less = (1 if unbiased else 0) if correction is None else correction
    squares = (x - x.mean(dim, keepdim=True)).square()
    return squares.sum(dim, keepdim=keepdim) / (count(x, dim) - less)


@decomposes("std")
def std(x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None) -> Any:
    """The root of the variance."""
    found = var(x, dim, unbiased, keepdim, correction=correction)
    return found if found is NotImplemented else found.sqrt()


@decomposes("linalg_vector_norm")
def vector_norm(x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """(Σ|x|ᵖ)^(1/p)."""
    if dim is None or dim == [] or dtype not in (None, x.dtype):
        return NotImplemented
    if abs(order) == math.inf:
        return x.abs().amax(dim, keepdim=keepdim) if order > 0 else x.abs().amin(dim, keepdim=keepdim)
    if order == 2:
        return x.square().sum(dim, keepdim=keepdim).sqrt()
    if order == 1:
        return x.abs().sum(dim, keepdim=keepdim)
    return x.abs().pow(order).sum(dim, keepdim=keepdim).pow(1 / order) if order > 0 else NotImplemented


@decomposes("norm")
def norm(x: Tensor, p: float | None = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The p-norm along axes, with p = 2 as the default."""
    return vector_norm(x, 2 if p is None else p, dim, keepdim, dtype=dtype)


@decomposes("amin")
def amin(x: Tensor, dim: Any = (), keepdim: bool = False) -> Any:
    """−max(−x)."""
    return NotImplemented if dim in ((), []) else -(-x).amax(dim, keepdim=keepdim)


@decomposes("max")
def largest(x: Tensor, *arguments: Any, **named: Any) -> Any:
    """The larger of two tensors; along an axis it stays."""
    other = arguments[0] if arguments else named.get("other")
    return torch.maximum(x, other) if isinstance(other, Tensor) else NotImplemented


@decomposes("min")
def smallest(x: Tensor, *arguments: Any, **named: Any) -> Any:
    """The smaller of two tensors, or −max(−x) along an axis."""
    other = arguments[0] if arguments else named.get("other")
    if isinstance(other, Tensor):
        return torch.minimum(x, other)
    if not arguments and not named:
        return NotImplemented
    values, places = torch.max(-x, *arguments, **named)
    return -values, places


@decomposes("cosine_similarity")
def cosine_similarity(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x·y over both norms, each at least ε."""
    sizes = [vector_norm(part, 2, dim, keepdim=True).clamp(min=eps) for part in (x, y)]
    return (x / sizes[0] * (y / sizes[1])).sum(dim)
