"""Linear relaxations of scalar functions on intervals, each sound on the whole interval.

A relaxation of f on [l, u] is four tensors with lower_slope·x + lower_shift ≤ f(x) ≤ upper_slope·x + upper_shift there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 33


@dataclass(frozen=True)
class Relaxation:
    """Two lines, elementwise: one below the function and one above it."""

    lower_slope: Tensor
    lower_shift: Tensor
    upper_slope: Tensor
    upper_shift: Tensor


Function = Callable[[Tensor], Tensor]


def chord_slope(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """The slope between both ends of the interval, zero where it has no width."""
    width = upper - lower
    slope = (function(upper) - function(lower)) / torch.where(width > 0, width, torch.ones_like(width))
    return torch.where((width > 0) & slope.isfinite(), slope, torch.zeros_like(slope))


def crown_slope(lower: Tensor, upper: Tensor) -> Tensor:
    """The slope below an unstable ReLU that leaves the smaller area: 1 where u > −l, else 0 (Zhang et al., NeurIPS 2018)."""
    return (upper > -lower).to(lower.dtype)


def relu_relaxation(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """ReLU: the chord above; below, a line through the origin with a slope in [0, 1] where the sign is not known.

    Without a slope, `crown_slope` is taken.
    """
    below, above = lower.clamp_max(0), upper.clamp_min(0)
    # 1 where the sign is positive and 0 where it is negative, as is CROWN's slope.
    # Rounded upwards: the line through (l, 0) reaches u.
    unit = torch.finfo(lower.dtype).eps
    chord = (above / (above - below).clamp_min(torch.finfo(lower.dtype).tiny)).mul(1 + 4 * unit).clamp_max(1)
    lower_slope = crown_slope(lower, upper) if slope is None else torch.where(below * above < 0, slope, chord)
    return Relaxation(lower_slope, torch.zeros_like(lower), chord, (chord * below).neg_())


def relu_of_difference(coefficients: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A slope and a shift, like `coefficients` a (N, R, …), with a·relu(d) ≥ slope·d + shift for d in [low, high], (N, …).

    `low` and `high` are differences of bounds, and rounded: the shift leaves room for that.
    """
    lines = relu_relaxation(low, high)
    positive, negative = coefficients.clamp_min(0), coefficients.clamp_max(0)
    slack = 1e-13 * (low.abs() + high.abs())
    slope = positive * lines.lower_slope[:, None] + negative * lines.upper_slope[:, None]
    shift = positive * (lines.lower_shift - slack)[:, None] + negative * (lines.upper_shift + slack)[:, None]
    return slope, shift


def kinked_relaxation(function: Function, kinks: Sequence[float], lower: Tensor, upper: Tensor) -> Relaxation:
    """A piecewise linear function: both lines parallel to the chord, through its extreme kinks; exact offsets."""
    slope = chord_slope(function, lower, upper)
    points = [lower, upper, *(torch.full_like(lower, kink).clamp(lower, upper) for kink in kinks)]
    return parallel(function, slope, torch.stack(points))


def smooth_relaxation(
    function: Function, curvature: Callable[[Tensor, Tensor], Tensor], lower: Tensor, upper: Tensor
) -> Relaxation:
    """A twice differentiable function with |f''| ≤ M on the interval: both lines parallel to the chord.

    Between grid points at distance h, f − slope·x leaves the segment between its values by at most M·h²/8, so the extreme
    grid values, moved out by that much, bound it everywhere. `curvature(l, u)` is M.
    """
    slope = chord_slope(function, lower, upper)
    shares = torch.linspace(0, 1, GRID, dtype=lower.dtype, device=lower.device).view(-1, *[1] * lower.ndim)
    points = lower + shares * (upper - lower)
    error = curvature(lower, upper) * ((upper - lower) / (GRID - 1)).square() / 8
    found = parallel(function, slope, points)
    return Relaxation(found.lower_slope, found.lower_shift - error, found.upper_slope, found.upper_shift + error)


def quadratic_pieces_relaxation(
    function: Function, breaks: Sequence[float], turning: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor
) -> Relaxation:
    """A function of quadratic pieces: both lines parallel to the chord, exact offsets.

    `turning(slope)` is where the curved piece has that slope; `breaks` are where pieces meet.
    """
    slope = chord_slope(function, lower, upper)
    points = [lower, upper, turning(slope).clamp(lower, upper)]
    points += [torch.full_like(lower, at).clamp(lower, upper) for at in breaks]
    return parallel(function, slope, torch.stack(points))


def parallel(function: Function, slope: Tensor, points: Tensor) -> Relaxation:
    """Two lines of this slope through the outermost of the function's values at these points (points, N, *shape)."""
    values, inner = function(points), slope * points
    offsets = values - inner
    # Rounding of the offsets themselves is covered by moving them out a few units in the last place.
    slack = 8 * torch.finfo(offsets.dtype).eps * (values.abs().amax(0) + inner.abs().amax(0))
    return Relaxation(slope, offsets.amin(0) - slack, slope, offsets.amax(0) + slack)
