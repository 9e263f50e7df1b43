"""Bounds of derivatives of scalar functions on intervals, sound on the whole interval; at a kink, of every Clarke derivative."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GRID = 33


def step_slopes(steps: Sequence[tuple[float, float, float]], lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """A piecewise linear function, by kinks from left to right: (where, slope on the left, slope on the right)."""
    low, high = torch.full_like(lower, torch.inf), torch.full_like(lower, -torch.inf)
    if not steps:
        return torch.ones_like(lower), torch.ones_like(lower)
    edges = [-torch.inf, *(where for where, _, _ in steps), torch.inf]
    slopes = [steps[0][1], *(right for _, _, right in steps)]
    for left, right, slope in zip(edges[:-1], edges[1:], slopes, strict=True):
        touched = (upper >= left) & (lower <= right)
        low = torch.where(touched, low.clamp_max(slope), low)
        high = torch.where(touched, high.clamp_min(slope), high)
    return low, high


def rising_slopes(derivative: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """A convex function: the derivative at both ends."""
    return derivative(lower), derivative(upper)


def bell_slopes(derivative: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """A derivative that falls with |x|: largest nearest to 0, smallest at an end."""
    low = torch.minimum(derivative(lower), derivative(upper))
    return low, derivative(torch.zeros_like(lower).clamp(lower, upper))


def sampled_slopes(
    derivative: Callable[[Tensor], Tensor], curvature: float, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """A derivative that changes by at most `curvature` per unit: extremes on a grid, moved out by half a step of it."""
    shares = torch.linspace(0, 1, GRID, dtype=lower.dtype, device=lower.device).view(-1, *[1] * lower.ndim)
    values = derivative(lower + shares * (upper - lower))
    error = curvature * (upper - lower) / (GRID - 1) / 2
    return values.amin(0) - error, values.amax(0) + error
