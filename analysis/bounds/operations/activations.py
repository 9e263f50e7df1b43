"""Activation functions as operations: value, exact range on a box, and linear relaxation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations.base import Elementwise, Interval, Operation
from certood.analysis.bounds.operations.derivatives import bell_slopes, rising_slopes, sampled_slopes, step_slopes
from certood.analysis.bounds.operations.gates import Gate
from certood.analysis.bounds.operations.precision import largest, widened
from certood.analysis.bounds.operations.relaxations import (
    Function,
    Relaxation,
    kinked_relaxation,
    quadratic_pieces_relaxation,
    relu_relaxation,
    smooth_relaxation,
)


@dataclass(frozen=True)
class Activation(Elementwise):
    """A scalar function applied elementwise.

    `relaxation` maps a box to two lines; `slopes` maps it to bounds of the derivative, at a kink of all its Clarke
    derivatives; `minima` are the points where a function that is not monotone turns from falling
    to rising (it rises to their right and falls to their left), empty for a nondecreasing one.

    What else holds of the function is said by properties. `kinks` are where the pieces of a piecewise linear one meet, at which
    branch and bound splits; with `only_kinks` only inputs that may be on either side of one are bounded more tightly, which is
    faster and a little looser. `chosen` maps a choice in [0, 1] and a box to two lines, where every choice of the lower one is
    sound: α-CROWN optimises it, starting from `crown_slope`. `limits` enclose all values; an `exact` function
    is evaluated without rounding.
    """

    name: str
    function: Function
    relaxation: Callable[[Tensor, Tensor], Relaxation]
    slopes: Callable[[Tensor, Tensor], Interval]
    minima: tuple[float, ...] = ()
    kinks: tuple[float, ...] | None = None
    chosen: Callable[[Tensor, Tensor, Tensor], Relaxation] | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)
    only_kinks: bool = False
    exact: bool = False

    @property
    def nonnegative(self) -> bool:
        """Whether no value is negative."""
        return self.limits[0] >= 0

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.function(inputs[0])

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The range: values at both ends, and at a minimum that lies between them."""
        lower, upper = inputs[0]
        at_ends = self.function(lower), self.function(upper)
        if self.kinks is not None and not self.minima:
            # Rising and piecewise linear: rounding keeps the order, and training is spared two comparisons.
            return at_ends
        low, high = torch.minimum(*at_ends), torch.maximum(*at_ends)
        for point in self.minima:
            inside = (lower < point) & (point < upper)
            value = self.function(torch.full_like(lower, point))
            # A margin for a minimum that is known to a few digits only.
            low = torch.where(inside, torch.minimum(low, value - 1e-9), low)
        return self.outward(low, high, inputs[0])

    def outward(self, low: Tensor, high: Tensor, box: Interval) -> Interval:
        """A range moved outwards by what evaluating the function may round, within `limits`."""
        if self.exact:
            return low, high
        low, high = widened(low, high, largest(low, high) + largest(*box), 1)
        return low.clamp_min(self.limits[0]), high.clamp_max(self.limits[1])

    def lines(self, lower: Tensor, upper: Tensor) -> Relaxation:
        """Two lines on the box (N, *shape)."""
        return self.relaxation(lower, upper)

    @property
    def adjustable(self) -> bool:
        """Whether there are lower lines to choose from."""
        return self.chosen is not None

    def lines_at(self, choice: Tensor, lower: Tensor, upper: Tensor) -> Relaxation:
        """Two lines on the box for a choice in [0, 1]."""
        return self.lines(lower, upper) if self.chosen is None else self.chosen(choice, lower, upper)

    def unsettled(self, box: Interval) -> Tensor:
        """With `only_kinks` the inputs that may be on either side of a kink, otherwise all whose box has a width."""
        lower, upper = box
        if not self.only_kinks:
            return lower < upper
        found = torch.zeros_like(lower, dtype=torch.bool)
        for kink in self.kinks or ():
            found |= (lower < kink) & (upper > kink)
        return found

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The largest slope on the boxes."""
        least, most = self.slopes(*boxes[0])
        return [float(torch.maximum(least.abs(), most.abs()).max())]

    def gradient(
        self, shapes: Sequence[torch.Size], boxes: Sequence[Interval]
    ) -> list[list[tuple[Operation, torch.Size]]]:
        """A factor within the bounds of the slopes."""
        return [[(Gate(*self.slopes(*boxes[0])), shapes[0])]]


def _constant(bound: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda lower, upper: torch.full_like(lower, bound)


def _smooth(function: Function, curvature: float) -> Callable[[Tensor, Tensor], Relaxation]:
    return partial(smooth_relaxation, function, _constant(curvature))


def _relu_lines(choice: Tensor, lower: Tensor, upper: Tensor) -> Relaxation:
    return relu_relaxation(lower, upper, choice)


RELU = Activation(
    "relu",
    F.relu,
    relu_relaxation,
    partial(step_slopes, ((0.0, 0.0, 1.0),)),
    kinks=(0.0,),
    chosen=_relu_lines,
    limits=(0.0, math.inf),
    only_kinks=True,
    exact=True,
)
# |σ''| ≤ 1/(6√3) = 0.09623, |tanh''| ≤ 4/(3√3) = 0.76981, |softplus''| = σ(1−σ) ≤ 1/4
SIGMOID = Activation(
    "sigmoid",
    torch.sigmoid,
    _smooth(torch.sigmoid, 0.0963),
    partial(bell_slopes, lambda x: torch.sigmoid(x) * torch.sigmoid(-x)),
    limits=(0.0, 1.0),
)
TANH = Activation(
    "tanh",
    torch.tanh,
    _smooth(torch.tanh, 0.7699),
    partial(bell_slopes, lambda x: 1 - torch.tanh(x).square()),
    limits=(-1.0, 1.0),
)
# x·σ(x): |f''| = |2σ' + xσ''| ≤ 1/2, at 0; its minimum is at −1.27846454
SILU = Activation(
    "silu",
    F.silu,
    _smooth(F.silu, 0.5),
    partial(sampled_slopes, lambda x: torch.sigmoid(x) * (1 + x * torch.sigmoid(-x)), 0.5),
    (-1.2784645427610738,),
)
# x·Φ(x): |f''| = |(2 − x²)φ(x)| ≤ 2φ(0) = 0.79789, at 0; its minimum is at −0.75179
GELU = Activation(
    "gelu",
    F.gelu,
    _smooth(F.gelu, 0.798),
    partial(
        sampled_slopes,
        lambda x: torch.special.ndtr(x) + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi),
        0.798,
    ),
    (-0.7517915246935645,),
)
# exp'' = exp, largest at the right end
EXP = Activation(
    "exp",
    torch.exp,
    partial(smooth_relaxation, torch.exp, lambda lower, upper: torch.exp(upper)),
    partial(rising_slopes, torch.exp),
    limits=(0.0, math.inf),
)
ABS = Activation(
    "abs",
    torch.abs,
    partial(kinked_relaxation, torch.abs, (0.0,)),
    partial(step_slopes, ((0.0, -1.0, 1.0),)),
    (0.0,),
    kinks=(0.0,),
    limits=(0.0, math.inf),
    exact=True,
)
HARDSIGMOID = Activation(
    "hardsigmoid",
    F.hardsigmoid,
    partial(kinked_relaxation, F.hardsigmoid, (-3.0, 3.0)),
    partial(step_slopes, ((-3.0, 0.0, 1 / 6), (3.0, 1 / 6, 0.0))),
    kinks=(-3.0, 3.0),
    limits=(0.0, 1.0),
)


def _hardswish_slopes(lower: Tensor, upper: Tensor) -> Interval:
    """(2x + 3)/6 between −3 and 3, 0 to the left, 1 to the right."""
    left, right = (2 * lower.clamp(-3, 3) + 3) / 6, (2 * upper.clamp(-3, 3) + 3) / 6
    outside = torch.where(lower <= -3, 0.0, math.inf), torch.where(upper >= 3, 1.0, math.inf)
    low = torch.where((upper < -3) | (lower > 3), math.inf, left)
    high = torch.where((upper < -3) | (lower > 3), -math.inf, right)
    for flat in outside:
        low = torch.minimum(low, flat)
        high = torch.maximum(high, torch.where(flat.isinf(), -math.inf, flat))
    return low, high


# x(x + 3)/6 between −3 and 3 has the slope s at (6s − 3)/2
HARDSWISH = Activation(
    "hardswish",
    F.hardswish,
    partial(quadratic_pieces_relaxation, F.hardswish, (-3.0, 3.0), lambda slope: (6 * slope - 3) / 2),
    _hardswish_slopes,
    (-1.5,),
)


@dataclass(frozen=True)
class Softplus(Activation):
    """PyTorch's softplus, which jumps down where its line begins; see `softplus`."""

    beta: float = 1.0
    threshold: float = 20.0

    @property
    def edge(self) -> float:
        """Where βx is the threshold."""
        return self.threshold / self.beta

    @property
    def fall(self) -> float:
        """By how much it jumps down there."""
        return float(_log1p_exp(-self.threshold)) / self.beta

    def slack(self, dtype: torch.dtype) -> float:
        """How far from the edge rounding may put the jump, in a precision."""
        return 16 * torch.finfo(dtype).eps * abs(self.edge) + torch.finfo(dtype).tiny

    def sides(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a box lies beyond the jump, and whether the jump may be inside of it."""
        slack = self.slack(lower.dtype)
        beyond = lower > self.edge + slack
        return beyond, ~beyond & (upper > self.edge - slack)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Values at both ends, and on both sides of the jump where that may be between them."""
        lower, upper = inputs[0]
        _, crossing = self.sides(lower, upper)
        slack, before = self.slack(lower.dtype), float(_log1p_exp(self.threshold)) / self.beta
        # The curve lies above the line and has a slope of at most 1.
        low = torch.where(crossing, _curve(lower, self.beta).clamp_max(self.edge - slack), self.function(lower))
        high = torch.where(crossing, upper.clamp_min(before + slack), self.function(upper))
        return self.outward(low, high, inputs[0])


def softplus(beta: float, threshold: float = 20.0) -> Activation:
    """PyTorch's softplus: log(1 + exp(βx))/β, |f''| ≤ β/4, and x where βx exceeds the threshold.

    At the threshold it falls by log(1 + exp(−threshold))/β: the lower line lies so much lower where the box reaches beyond it,
    and a box with the threshold inside has no bound of the derivative. Below 0 lie only values of x itself, beyond a threshold
    that is negative.
    """

    def function(x: Tensor) -> Tensor:
        return F.softplus(x, beta, threshold)

    def relaxation(lower: Tensor, upper: Tensor) -> Relaxation:
        lines = smooth_relaxation(partial(_curve, beta=beta), _constant(beta / 4 * 1.001), lower, upper)
        beyond, crossing = activation.sides(lower, upper)
        cut = crossing.to(lower.dtype) * (activation.fall * (1 + 1e-6) + activation.slack(lower.dtype))
        parts = lines.lower_slope, lines.lower_shift - cut, lines.upper_slope, lines.upper_shift
        return Relaxation(
            *(torch.where(beyond, own, part) for own, part in zip((1.0, 0.0, 1.0, 0.0), parts, strict=True))
        )

    def slopes(lower: Tensor, upper: Tensor) -> Interval:
        beyond, crossing = activation.sides(lower, upper)
        low = torch.where(beyond, 1.0, torch.sigmoid(beta * lower))
        high = torch.where(beyond | crossing, 1.0, torch.sigmoid(beta * upper))
        return torch.where(crossing, -math.inf, low), high

    least = min(0.0, threshold / beta * (1 + 1e-5))
    activation = Softplus(
        "softplus", function, relaxation, slopes, limits=(least, math.inf), beta=beta, threshold=threshold
    )
    return activation


def _curve(x: Tensor, beta: float) -> Tensor:
    """log(1 + exp(βx))/β."""
    return torch.logaddexp(beta * x, torch.zeros_like(x)) / beta


def _log1p_exp(x: float) -> float:
    """log(1 + exp(x))."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def leaky_relu(slope: float) -> Activation:
    """x for x ≥ 0, slope·x below, for 0 ≤ slope ≤ 1: the chord above, a line through the origin below."""

    def function(x: Tensor) -> Tensor:
        return F.leaky_relu(x, slope)

    def relaxation(lower: Tensor, upper: Tensor, choice: Tensor | None = None) -> Relaxation:
        # f = slope·x + (1 − slope)·relu(x)
        inner = relu_relaxation(lower, upper, choice)
        return Relaxation(
            slope + (1 - slope) * inner.lower_slope,
            (1 - slope) * inner.lower_shift,
            slope + (1 - slope) * inner.upper_slope,
            (1 - slope) * inner.upper_shift,
        )

    return Activation(
        "leaky_relu",
        function,
        relaxation,
        partial(step_slopes, ((0.0, slope, 1.0),)),
        kinks=(0.0,),
        chosen=lambda choice, lower, upper: relaxation(lower, upper, choice),
    )


def elu(alpha: float) -> Activation:
    """x for x ≥ 0, α(eˣ − 1) below, for 0 ≤ α ≤ 1, where it is convex: a chord above, the parallel tangent below."""

    def function(x: Tensor) -> Tensor:
        return F.elu(x, alpha)

    def turning(slope: Tensor) -> Tensor:
        return torch.log((slope / alpha).clamp(1e-300, 1.0))

    def slopes(lower: Tensor, upper: Tensor) -> Interval:
        # αeˣ to the left of 0, 1 to its right: nondecreasing, with a jump at 0 where α < 1.
        low = torch.where(lower <= 0, alpha * lower.clamp_max(0).exp(), 1.0)
        high = torch.where(upper >= 0, 1.0, alpha * upper.clamp_max(0).exp())
        return low, high

    return Activation("elu", function, partial(quadratic_pieces_relaxation, function, (0.0,), turning), slopes)


def clamp(low: float, high: float) -> Activation:
    """The value, cut off below and above: ReLU6, hard-tanh, clamp."""

    def function(x: Tensor) -> Tensor:
        return x.clamp(low, high)

    steps = tuple(step for step in ((low, 0.0, 1.0), (high, 1.0, 0.0)) if math.isfinite(step[0]))
    return Activation(
        "clamp",
        function,
        partial(kinked_relaxation, function, (low, high)),
        partial(step_slopes, steps),
        kinks=tuple(where for where, _, _ in steps),
        limits=(low, high),
        exact=True,
    )
