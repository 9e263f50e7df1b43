"""Activations that are not defined, or not bounded, everywhere: where a box reaches beyond the domain, nothing is known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certood.analysis.bounds.operations.activations import Activation
from certood.analysis.bounds.operations.base import Interval
from certood.analysis.bounds.operations.relaxations import Function, Relaxation, chord_slope, parallel

Domain = Callable[[Tensor, Tensor], Tensor]


def everywhere(lower: Tensor, upper: Tensor) -> Tensor:
    """Every box that is bounded."""
    return lower.isfinite() & upper.isfinite()


def positive(lower: Tensor, upper: Tensor) -> Tensor:
    """Boxes above 0."""
    return (lower > 0) & upper.isfinite()


def not_negative(lower: Tensor, upper: Tensor) -> Tensor:
    """Boxes that do not reach below 0."""
    return (lower >= 0) & upper.isfinite()


def one_sign(lower: Tensor, upper: Tensor) -> Tensor:
    """Boxes without 0."""
    return ((lower > 0) | (upper < 0)) & lower.isfinite() & upper.isfinite()


@dataclass(frozen=True)
class PartialActivation(Activation):
    """A function on the boxes for which `domain` holds: elsewhere both bounds, and those of its slopes, are infinite."""

    domain: Domain = field(default=everywhere)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Values at both ends and at minima between them, moved out by their rounding."""
        lower, upper = inputs[0]
        ends = self.function(lower), self.function(upper)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        for point in self.minima:
            inside = (lower < point) & (point < upper)
            low = torch.where(inside, torch.minimum(low, self.function(torch.full_like(lower, point))), low)
        slack = 4 * torch.finfo(low.dtype).eps
        low, high = low - slack * low.abs(), high + slack * high.abs()
        low, high = low.clamp_min(self.limits[0]), high.clamp_max(self.limits[1])
        known = self.domain(lower, upper)
        return torch.where(known, low, -math.inf), torch.where(known, high, math.inf)


def curved(
    name: str,
    function: Function,
    derivative: Function,
    turning: Callable[[Tensor], Sequence[Tensor]],
    domain: Domain,
    **known: object,
) -> PartialActivation:
    """A function by its derivative, which is monotone on every box of its domain, and where that has a slope.

    `turning(slope)` are all points at which the derivative may be the slope, so that f − slope·x is extreme there or at an end.
    """

    def relaxation(lower: Tensor, upper: Tensor) -> Relaxation:
        fine = domain(lower, upper)
        # Any box of the domain in place of one that is not.
        low, high = torch.where(fine, lower, 1.0), torch.where(fine, upper, 2.0)
        found = _parallel_lines(function, turning, low, high)
        parts = found.lower_slope, found.lower_shift, found.upper_slope, found.upper_shift
        fine = fine & torch.stack([part.isfinite() for part in parts]).all(0)
        zero = torch.zeros_like(low)
        return Relaxation(
            torch.where(fine, parts[0], zero),
            torch.where(fine, parts[1], -math.inf),
            torch.where(fine, parts[2], zero),
            torch.where(fine, parts[3], math.inf),
        )

    def slopes(lower: Tensor, upper: Tensor) -> Interval:
        fine = domain(lower, upper)
        ends = derivative(lower), derivative(upper)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        slack = 4 * torch.finfo(low.dtype).eps
        low, high = low - slack * low.abs(), high + slack * high.abs()
        return torch.where(fine, low, -math.inf).nan_to_num(
            nan=-math.inf, neginf=-math.inf, posinf=math.inf
        ), torch.where(fine, high, math.inf).nan_to_num(nan=math.inf, neginf=-math.inf, posinf=math.inf)

    return PartialActivation(name, function, relaxation, slopes, domain=domain, **known)  # type: ignore[arg-type]


def _parallel_lines(
    function: Function, turning: Callable[[Tensor], Sequence[Tensor]], lower: Tensor, upper: Tensor
) -> Relaxation:
    """Both lines parallel to the chord, through the ends or where the derivative is the slope of the chord."""
    slope = chord_slope(function, lower, upper)
    turns = (turn.nan_to_num(nan=0.0) for turn in turning(slope))
    points = torch.stack([lower, upper, *(torch.minimum(torch.maximum(turn, lower), upper) for turn in turns)])
    return parallel(function, slope, points)
