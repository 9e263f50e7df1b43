"""What broadcasting an operand does to rows of coefficients, to constants and to norms."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sum_to_shape(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows (N, R, …) summed over the axes along which a sample of this shape was broadcast."""
    missing = rows.ndim - 2 - len(shape)
    if missing:
        rows = rows.flatten(2, 1 + missing).sum(2)
    for axis, size in enumerate(shape, start=2):
        if size == 1 and rows.shape[axis] != 1:
            rows = rows.sum(axis, keepdim=True)
    return rows


def along_axis(constant: Tensor, shape: torch.Size, axis: int) -> Tensor | None:
    """A constant that broadcasts against `shape` as a vector along one axis; None where it varies along others."""
    axis %= len(shape)
    full = constant.reshape(*[1] * (len(shape) - constant.ndim), *constant.shape)
    if any(size != 1 for place, size in enumerate(full.shape) if place != axis):
        return None
    return full.flatten().expand(shape[axis])


def broadcast_norm(p: float, result: Sequence[int], shape: Sequence[int]) -> float:
    """By how much broadcasting a sample of this shape to the shape of the result enlarges its p-norm."""
    return 1.0 if p == math.inf else (math.prod(result) / max(1, math.prod(shape))) ** (1 / p)
