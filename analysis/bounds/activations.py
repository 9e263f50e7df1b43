"""Activation functions as operations: value, exact range on a box, and linear relaxation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations import Interval, Operation
from certood.analysis.bounds.relaxations import (
    Function,
    Relaxation,
    kinked_relaxation,
    quadratic_pieces_relaxation,
    relu_relaxation,
    smooth_relaxation,
)


@dataclass(frozen=True)
class Activation(Operation):
    """A scalar function applied elementwise.

    `relaxation` maps a box to two lines; `minima` are the points where a function that is not monotone turns from falling
    to rising (it rises to their right and falls to their left), empty for a nondecreasing one.
    """

    name: str
    function: Function
    relaxation: Callable[[Tensor, Tensor], Relaxation]
    minima: tuple[float, ...] = ()

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.function(inputs[0])

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The range: values at both ends, and at a minimum that lies between them."""
        lower, upper = inputs[0]
        at_ends = self.function(lower), self.function(upper)
        low, high = torch.minimum(*at_ends), torch.maximum(*at_ends)
        for point in self.minima:
            inside = (lower < point) & (point < upper)
            value = self.function(torch.full_like(lower, point))
            # A margin for a minimum that is known to a few digits only.
            low = torch.where(inside, torch.minimum(low, value - 1e-9), low)
        return low, high


def _constant(bound: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda lower, upper: torch.full_like(lower, bound)


def _smooth(function: Function, curvature: float) -> Callable[[Tensor, Tensor], Relaxation]:
    return partial(smooth_relaxation, function, _constant(curvature))


RELU = Activation("relu", F.relu, relu_relaxation)
# |σ''| ≤ 1/(6√3) = 0.09623, |tanh''| ≤ 4/(3√3) = 0.76981, |softplus''| = σ(1−σ) ≤ 1/4
SIGMOID = Activation("sigmoid", torch.sigmoid, _smooth(torch.sigmoid, 0.0963))
TANH = Activation("tanh", torch.tanh, _smooth(torch.tanh, 0.7699))
# x·σ(x): |f''| = |2σ' + xσ''| ≤ 1/2, at 0; its minimum is at −1.27846454
SILU = Activation("silu", F.silu, _smooth(F.silu, 0.5), (-1.2784645427610738,))
# x·Φ(x): |f''| = |(2 − x²)φ(x)| ≤ 2φ(0) = 0.79789, at 0; its minimum is at −0.75179
GELU = Activation("gelu", F.gelu, _smooth(F.gelu, 0.798), (-0.7517915246935645,))
# exp'' = exp, largest at the right end
EXP = Activation("exp", torch.exp, partial(smooth_relaxation, torch.exp, lambda lower, upper: torch.exp(upper)))
HARDSIGMOID = Activation("hardsigmoid", F.hardsigmoid, partial(kinked_relaxation, F.hardsigmoid, (-3.0, 3.0)))
# x(x + 3)/6 between −3 and 3 has the slope s at (6s − 3)/2
HARDSWISH = Activation(
    "hardswish",
    F.hardswish,
    partial(quadratic_pieces_relaxation, F.hardswish, (-3.0, 3.0), lambda slope: (6 * slope - 3) / 2),
    (-1.5,),
)


def softplus(beta: float) -> Activation:
    """log(1 + exp(βx))/β, with |f''| ≤ β/4; computed without PyTorch's linear cut-off, which is a small jump."""

    def function(x: Tensor) -> Tensor:
        return torch.logaddexp(beta * x, torch.zeros_like(x)) / beta

    return Activation("softplus", function, _smooth(function, beta / 4 * 1.001))


def leaky_relu(slope: float) -> Activation:
    """x for x ≥ 0, slope·x below, for 0 ≤ slope ≤ 1: the chord above, a line through the origin below."""

    def function(x: Tensor) -> Tensor:
        return F.leaky_relu(x, slope)

    def relaxation(lower: Tensor, upper: Tensor) -> Relaxation:
        # f = slope·x + (1 − slope)·relu(x)
        inner = relu_relaxation(lower, upper)
        return Relaxation(
            slope + (1 - slope) * inner.lower_slope,
            (1 - slope) * inner.lower_shift,
            slope + (1 - slope) * inner.upper_slope,
            (1 - slope) * inner.upper_shift,
        )

    return Activation("leaky_relu", function, relaxation)


def elu(alpha: float) -> Activation:
    """x for x ≥ 0, α(eˣ − 1) below, for 0 ≤ α ≤ 1, where it is convex: a chord above, the parallel tangent below."""

    def function(x: Tensor) -> Tensor:
        return F.elu(x, alpha)

    def turning(slope: Tensor) -> Tensor:
        return torch.log((slope / alpha).clamp(1e-300, 1.0))

    return Activation("elu", function, partial(quadratic_pieces_relaxation, function, (0.0,), turning))


def clamp(low: float, high: float) -> Activation:
    """The value, cut off below and above: ReLU6, hard-tanh, clamp."""

    def function(x: Tensor) -> Tensor:
        return x.clamp(low, high)

    return Activation("clamp", function, partial(kinked_relaxation, function, (low, high)))
