"""Sine and cosine."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from certood.analysis.bounds.operations.activations import Activation
from certood.analysis.bounds.operations.base import Interval
from certood.analysis.bounds.operations.relaxations import Relaxation, smooth_relaxation

# Boxes wider than this get constants: lines of one slope lose more to the curvature.
WIDE = 3.0


def sine_range(phase: float, lower: Tensor, upper: Tensor) -> Interval:
    """The range of sin(x + phase) on boxes, moved out by what rounding of the argument may cost."""
    ends = torch.sin(lower + phase), torch.sin(upper + phase)
    slack = 1e-15 + 4 * torch.finfo(lower.dtype).eps * (torch.maximum(lower.abs(), upper.abs()) + abs(phase))

    def reaches(peak: float) -> Tensor:
        """Whether the box holds peak + 2πk for a whole k."""
        first = torch.ceil((lower + phase - slack - peak) / (2 * math.pi)) * (2 * math.pi) + peak
        return (first <= upper + phase + slack) | ~(upper - lower < 2 * math.pi)

    high = torch.where(reaches(math.pi / 2), 1.0, torch.maximum(*ends) + slack)
    low = torch.where(reaches(-math.pi / 2), -1.0, torch.minimum(*ends) - slack)
    return low.clamp_min(-1), high.clamp_max(1)


@dataclass(frozen=True)
class Sinusoid(Activation):
    """sin(x + phase)."""

    phase: float = 0.0

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The exact range."""
        return sine_range(self.phase, *inputs[0])


def _lines(function: Callable[[Tensor], Tensor], phase: float, lower: Tensor, upper: Tensor) -> Relaxation:
    """Parallel lines with |f''| ≤ 1, or the range where the box is wide."""
    lines = smooth_relaxation(function, lambda low, high: torch.ones_like(low), lower, upper)
    low, high = sine_range(phase, lower, upper)
    narrow = upper - lower < WIDE
    zero = torch.zeros_like(lower)
    return Relaxation(
        torch.where(narrow, lines.lower_slope, zero),
        torch.where(narrow, lines.lower_shift, low),
        torch.where(narrow, lines.upper_slope, zero),
        torch.where(narrow, lines.upper_shift, high),
    )


def _sinusoid(name: str, function: Callable[[Tensor], Tensor], phase: float) -> Sinusoid:
    slopes = partial(sine_range, phase + math.pi / 2)
    return Sinusoid(name, function, partial(_lines, function, phase), slopes, limits=(-1.0, 1.0), phase=phase)


SIN = _sinusoid("sin", torch.sin, 0.0)
COS = _sinusoid("cos", torch.cos, math.pi / 2)
