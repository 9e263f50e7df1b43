"""Piecewise linear activations that jump: hard-shrink, threshold, sign. At a jump the derivative has no bound."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations.activations import Activation
from certood.analysis.bounds.operations.base import Interval
from certood.analysis.bounds.operations.relaxations import Function, Relaxation, chord_slope


@dataclass(frozen=True)
class Piece:
    """slope·x + shift between two ends, both of which are counted in."""

    left: float
    right: float
    slope: float
    shift: float


@dataclass(frozen=True)
class PiecewiseLinear(Activation):
    """A function of linear pieces from left to right."""

    pieces: tuple[Piece, ...] = field(default=())

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The values of all pieces at the ends of what the box holds of them."""
        lower, upper = inputs[0]
        return _extremes(self.pieces, torch.zeros_like(lower), lower, upper)


def piecewise_linear(name: str, function: Function, pieces: Sequence[Piece]) -> PiecewiseLinear:
    """An activation by its value and its pieces."""

    def relaxation(lower: Tensor, upper: Tensor) -> Relaxation:
        slope = chord_slope(function, lower, upper)
        least, most = _extremes(pieces, slope, lower, upper)
        return Relaxation(slope, least, slope, most)

    def slopes(lower: Tensor, upper: Tensor) -> Interval:
        low, high = torch.full_like(lower, math.inf), torch.full_like(lower, -math.inf)
        for piece in pieces:
            touched = (upper >= piece.left) & (lower <= piece.right)
            low = torch.where(touched, low.clamp_max(piece.slope), low)
            high = torch.where(touched, high.clamp_min(piece.slope), high)
        for one, two in itertools.pairwise(pieces):
            rise = (two.slope - one.slope) * one.right + two.shift - one.shift
            crossed = (lower <= one.right) & (upper >= one.right)
            low = torch.where(crossed & (rise < 0), -math.inf, low)
            high = torch.where(crossed & (rise > 0), math.inf, high)
        return low, high

    return PiecewiseLinear(name, function, relaxation, slopes, pieces=tuple(pieces))


def _extremes(pieces: Sequence[Piece], slope: Tensor, lower: Tensor, upper: Tensor) -> Interval:
    """The least and the largest value of f(x) − slope·x on the box, moved out by rounding."""
    low, high = torch.full_like(lower, math.inf), torch.full_like(lower, -math.inf)
    size = torch.zeros_like(lower)
    for piece in pieces:
        touched = (upper >= piece.left) & (lower <= piece.right)
        for end in (lower, upper):
            point = end.clamp(piece.left, piece.right)
            value = piece.slope * point + piece.shift
            low = torch.where(touched, torch.minimum(low, value - slope * point), low)
            high = torch.where(touched, torch.maximum(high, value - slope * point), high)
            size = torch.where(touched, torch.maximum(size, value.abs() + (slope * point).abs()), size)
    slack = 8 * torch.finfo(lower.dtype).eps * size
    return low - slack, high + slack


def hardshrink(edge: float) -> PiecewiseLinear:
    """x where |x| > λ, else 0."""
    pieces = [Piece(-math.inf, -edge, 1, 0), Piece(-edge, edge, 0, 0), Piece(edge, math.inf, 1, 0)]
    return piecewise_linear("hardshrink", lambda x: F.hardshrink(x, edge), pieces)


def threshold(edge: float, value: float) -> PiecewiseLinear:
    """x above a threshold, a value elsewhere."""
    pieces = [Piece(-math.inf, edge, 0, value), Piece(edge, math.inf, 1, 0)]
    return piecewise_linear("threshold", lambda x: F.threshold(x, edge, value), pieces)


SIGN = piecewise_linear("sign", torch.sign, [Piece(-math.inf, 0, 0, -1), Piece(0, 0, 0, 0), Piece(0, math.inf, 0, 1)])
