"""Concatenation whose double backward is a concatenation.

The gradient of the parts is a split of the gradient of the whole, and the gradients of that split are parts of a whole again.
PyTorch puts each of them into a plane of zeros of its own, in the plain layout, and adds these up: a dense network spends most
of its double backward in that.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def concatenate(tensors: Any, dim: Any = 0, **others: Any) -> Tensor | None:
    """The tensors joined along an axis, or None where that is PyTorch's affair: kinds that differ, nothing to differentiate."""
    parts = tuple(tensors)
    if others or not isinstance(dim, int) or not torch.is_grad_enabled():
        return None
    if len({(type(part), part.ndim, part.dtype, part.device) for part in parts}) != 1 or type(parts[0]) is not Tensor:
        return None
    if not any(part.requires_grad for part in parts):
        return None
    found: Tensor = _Join.apply(dim, *parts)
    return found


class _Join(Function):
    """The whole of the parts."""

    @staticmethod
    def forward(ctx: Any, dim: int, *parts: Tensor) -> Tensor:
        ctx.dim, ctx.sizes = dim, [part.shape[dim] for part in parts]
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Split.apply(gradients[0], ctx.dim, ctx.sizes)


class _Split(Function):
    """The parts of the whole."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, dim: int, sizes: list[int]) -> tuple[Tensor, ...]:
        ctx.dim = dim
        return tuple(whole.split(sizes, dim))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.cat(gradients, ctx.dim), None, None
