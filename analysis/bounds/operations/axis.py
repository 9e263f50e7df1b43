"""Functions of whole vectors along axes of an activation: maximum, logsumexp, softmax, log-softmax.

Each value is relaxed by two planes over the box of its vector. z are the inputs, K of them, l ≤ z ≤ u, and c their middle.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Interval, JointRelaxation, Operation
from certood.analysis.bounds.operations.flattening import totals
from certood.analysis.bounds.operations.gates import Gate
from certood.analysis.bounds.operations.monotone import Monotone
from certood.analysis.bounds.operations.precision import unit_roundoff
from certood.scores.log_probabilities import probability_jacobian
from certood.scores.logsumexp import chord_of_exp

# What rounding may move a plane by, relative to the magnitude of its terms, at least.
SLACK = 1e-13


def _slack(count: int) -> float:
    """What rounding may move a plane by for vectors of so many values, relative to the magnitude of its terms."""
    return max(SLACK, 8 * (count + 32) * unit_roundoff(torch.float64))


@dataclass(frozen=True)
class Planes:
    """slope·z + shift for every value of every vector: slopes (…, M, K) and shifts (…, M), below and above."""

    lower_slope: Tensor
    lower_shift: Tensor
    upper_slope: Tensor
    upper_shift: Tensor

    def widened(self, lower: Tensor, upper: Tensor) -> "Planes":
        """Moved outwards by what rounding may cost on this box (…, K)."""
        reach = torch.maximum(lower.abs(), upper.abs())[..., None]
        slack = _slack(self.lower_slope.shape[-1] + self.lower_slope.shape[-2])
        below = slack * ((self.lower_slope.abs() @ reach)[..., 0] + self.lower_shift.abs() + 1e-3)
        above = slack * ((self.upper_slope.abs() @ reach)[..., 0] + self.upper_shift.abs() + 1e-3)
        return Planes(self.lower_slope, self.lower_shift - below, self.upper_slope, self.upper_shift + above)


class AxisFunction(JointRelaxation):
    """A function of the vectors along some axes of a sample, to one value (`reduces`) or to as many values.

    Vectors stand in the last axis below: (…, K) in, (…, M) out.
    """

    reduces: ClassVar[bool] = False

    def __init__(self, axes: Sequence[int], shape: torch.Size) -> None:
        self.axes, self.shape = tuple(axes), shape

    @abstractmethod
    def value(self, vectors: Tensor) -> Tensor:
        """The values (…, M) of vectors (…, K)."""

    @abstractmethod
    def extent(self, lower: Tensor, upper: Tensor) -> Interval:
        """The range of every value (…, M) over boxes (…, K)."""

    @abstractmethod
    def planes(self, lower: Tensor, upper: Tensor) -> Planes:
        """Planes below and above every value over boxes (…, K)."""

    @abstractmethod
    def jacobian(self, lower: Tensor, upper: Tensor) -> Interval:
        """Bounds (…, M, K) of the derivatives over boxes (…, K); at a kink of all Clarke derivatives."""

    def vectors(self, x: Tensor, leading: int = 1) -> Tensor:
        """Inputs with `leading` axes before those of a sample, as (…, K)."""
        places = [leading + axis for axis in self.axes]
        moved: Tensor = x.movedim(places, list(range(-len(places), 0)))
        return moved.flatten(-len(places))

    def spread(self, vectors: Tensor, shape: torch.Size, leading: int = 1) -> Tensor:
        """Back from (…, K) to inputs of this shape."""
        places = [leading + axis for axis in self.axes]
        back: Tensor = vectors.unflatten(-1, [shape[axis] for axis in self.axes])
        return back.movedim(list(range(-len(places), 0)), places)

    def results(self, values: Tensor, leading: int = 1) -> Tensor:
        """Outputs with `leading` axes before those of a sample, from (…, M)."""
        if self.reduces:
            return values[..., 0].reshape(*values.shape[:leading], *self.shape)
        return self.spread(values, self.shape, leading)

    def coefficients(self, rows: Tensor, inner: torch.Size, leading: int = 2) -> Tensor:
        """What stands at the outputs, as (…, M), where vectors are (*inner, K)."""
        return rows.reshape(*rows.shape[:leading], *inner, 1) if self.reduces else self.vectors(rows, leading)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.results(self.value(self.vectors(inputs[0])))

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The range over the box."""
        low, high = self.extent(self.vectors(inputs[0][0]), self.vectors(inputs[0][1]))
        return self.results(low), self.results(high)

    def gradient(
        self, shapes: Sequence[torch.Size], boxes: Sequence[Interval]
    ) -> list[list[tuple[Operation, torch.Size]]]:
        """Every gradient once for every input of its vector, gated by the Jacobian, and summed."""
        shape = shapes[0]
        least, most = self.jacobian(*(self.vectors(bound) for bound in boxes[0]))
        spread = least.shape[1:]
        inner = spread[:-2]

        def copies(x: Tensor) -> Tensor:
            return self.coefficients(x, inner, 1)[..., None].expand(-1, *spread)

        def sums(x: Tensor) -> Tensor:
            return self.spread(x.sum(-2), shape)

        return [[(Monotone(copies), spread), (Gate(least, most), spread), (Monotone(sums), shape)]]

    def transpose_lower(
        self, rows: Tensor, boxes: Sequence[Interval], shapes: Sequence[torch.Size]
    ) -> tuple[list[Tensor], Tensor]:
        """A positive coefficient takes the plane below, a negative one that above."""
        lower, upper = (self.vectors(bound) for bound in boxes[0])
        planes = self.planes(lower, upper).widened(lower, upper)
        own = self.coefficients(rows, lower.shape[1:-1])
        positive, negative = own.clamp_min(0), own.clamp_max(0)
        back = torch.einsum("nr...m,n...mk->nr...k", positive, planes.lower_slope)
        back = back + torch.einsum("nr...m,n...mk->nr...k", negative, planes.upper_slope)
        constant = totals(positive * planes.lower_shift[:, None] + negative * planes.upper_shift[:, None])
        return [self.spread(back, shapes[0], 2)], constant


class Maximum(AxisFunction):
    """The largest value. Below: the input whose lower bound is largest; above: it too where certain, else the largest u."""

    reduces = True

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """1: it changes by at most the largest change."""
        return [1.0]

    def value(self, vectors: Tensor) -> Tensor:
        """max z."""
        return vectors.amax(-1, keepdim=True)

    def extent(self, lower: Tensor, upper: Tensor) -> Interval:
        """Maxima of both ends."""
        return lower.amax(-1, keepdim=True), upper.amax(-1, keepdim=True)

    def planes(self, lower: Tensor, upper: Tensor) -> Planes:
        """A plane for each side: of one input, or constant."""
        chosen = torch.nn.functional.one_hot(lower.argmax(-1), lower.shape[-1]).to(lower.dtype)[..., None, :]
        zero = torch.zeros_like(lower[..., :1])
        certain = self.jacobian(lower, upper)[0].sum(-1) > 0
        ceiling = torch.where(certain, zero, upper.amax(-1, keepdim=True))
        return Planes(chosen, zero, chosen * certain[..., None], ceiling)

    def jacobian(self, lower: Tensor, upper: Tensor) -> Interval:
        """Whether each input must be, and may be, the largest."""
        possible = upper >= lower.amax(-1, keepdim=True)
        certain = possible & (possible.sum(-1, keepdim=True) == 1)
        return certain.to(lower.dtype)[..., None, :], possible.to(lower.dtype)[..., None, :]


class LogSumExp(AxisFunction):
    """log Σ exp z. Below: the tangent at c; above: the chord of each exponential, then a tangent of the logarithm."""

    reduces = True

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """1: its derivatives are probabilities."""
        return [1.0]

    def value(self, vectors: Tensor) -> Tensor:
        """LSE(z)."""
        return torch.logsumexp(vectors, -1, keepdim=True)

    def extent(self, lower: Tensor, upper: Tensor) -> Interval:
        """It rises with every input."""
        low, high, slack = self.value(lower), self.value(upper), _slack(lower.shape[-1])
        return low - slack * (1 + low.abs()), high + slack * (1 + high.abs())

    def planes(self, lower: Tensor, upper: Tensor) -> Planes:
        """See the class; Wei et al., AISTATS 2023 (arXiv 2303.01713)."""
        middle = (lower + upper) / 2
        weights = middle.softmax(-1)
        below = self.value(middle) - (weights * middle).sum(-1, keepdim=True)
        top = upper.amax(-1, keepdim=True)
        slope, shift = chord_of_exp(lower - top, upper - top)
        total = (slope * (middle - top) + shift).sum(-1, keepdim=True)
        above_slope = slope / total
        above = top + total.log() - 1 + ((shift - slope * top).sum(-1, keepdim=True)) / total
        return Planes(weights[..., None, :], below, above_slope[..., None, :], above)

    def jacobian(self, lower: Tensor, upper: Tensor) -> Interval:
        """The probabilities."""
        low, high = _log_probabilities(lower, upper)
        return low.exp()[..., None, :], high.exp().clamp_max(1)[..., None, :]


class LogSoftmax(AxisFunction):
    """z − LSE(z): rows of it read z exactly, and the logsumexp once."""

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """I − 1pᵀ: rows sum to 2(1 − pₖ), columns to at most K, and ‖1‖₂‖p‖₂ ≤ √K."""
        count = math.prod(shapes[0][axis] for axis in self.axes)
        return [{math.inf: 2.0, 2.0: 1 + math.sqrt(count), 1.0: float(count)}[p]]

    def value(self, vectors: Tensor) -> Tensor:
        """log p."""
        return vectors.log_softmax(-1)

    def extent(self, lower: Tensor, upper: Tensor) -> Interval:
        """Each at its own end, all others at their other end."""
        return _log_probabilities(lower, upper)

    def planes(self, lower: Tensor, upper: Tensor) -> Planes:
        """zₖ minus the planes of the logsumexp."""
        inner = LogSumExp((0,), torch.Size(())).planes(lower, upper)
        unit = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        count = lower.shape
        return Planes(
            unit - inner.upper_slope, (-inner.upper_shift).expand(count),
            unit - inner.lower_slope, (-inner.lower_shift).expand(count),
        )  # fmt: skip

    def transpose_lower(
        self, rows: Tensor, boxes: Sequence[Interval], shapes: Sequence[torch.Size]
    ) -> tuple[list[Tensor], Tensor]:
        """Σ aₖ(zₖ − LSE) = a·z − (Σ aₖ)·LSE: the differences of two values lose nothing."""
        lower, upper = (self.vectors(bound) for bound in boxes[0])
        planes = LogSumExp((0,), torch.Size(())).planes(lower, upper).widened(lower, upper)
        own = self.vectors(rows, 2)
        total = -own.sum(-1, keepdim=True)
        positive, negative = total.clamp_min(0), total.clamp_max(0)
        back = (
            own + positive * planes.lower_slope[:, None, ..., 0, :] + negative * planes.upper_slope[:, None, ..., 0, :]
        )
        constant = totals(positive * planes.lower_shift[:, None] + negative * planes.upper_shift[:, None])
        return [self.spread(back, shapes[0], 2)], constant

    def jacobian(self, lower: Tensor, upper: Tensor) -> Interval:
        """δₖⱼ − pⱼ."""
        low, high = _log_probabilities(lower, upper)
        unit = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        return unit - high.exp().clamp_max(1)[..., None, :], unit - low.exp()[..., None, :]


class Softmax(AxisFunction):
    """pₖ = 1/s with s = Σ exp d, d = z − zₖ.

    Below: s ≤ w(d), the sum of the chords of exp, and 1/w ≥ 2/w₀ − w/w₀². Above: 1/s ≤ 1/s_lo + 1/s_hi − s/(s_lo·s_hi), the
    chord, and s ≥ v(d), the sum of tangents (Wei et al., AISTATS 2023, arXiv 2303.01713). Constants where that overflows.
    """

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """1/2: Σⱼ |∂pₖ/∂zⱼ| = 2pₖ(1 − pₖ), and the Jacobian is symmetric."""
        return [0.5]

    def value(self, vectors: Tensor) -> Tensor:
        """p."""
        return vectors.softmax(-1)

    def extent(self, lower: Tensor, upper: Tensor) -> Interval:
        """Each at its own end, all others at their other end."""
        low, high = _log_probabilities(lower, upper)
        slack = _slack(lower.shape[-1])
        return (low.exp() * (1 - slack)).clamp_min(0), (high.exp() * (1 + slack)).clamp_max(1)

    def planes(self, lower: Tensor, upper: Tensor) -> Planes:
        """See the class."""
        own = torch.eye(lower.shape[-1], dtype=torch.bool, device=lower.device)
        low = (lower[..., None, :] - upper[..., :, None]).masked_fill(own, 0)
        high = (upper[..., None, :] - lower[..., :, None]).masked_fill(own, 0)
        slope, shift = chord_of_exp(low, high)
        middle = (low + high) / 2
        total = (slope * middle + shift).sum(-1)
        below = _in_inputs(-slope / total.square()[..., None], own)
        below_shift = 2 / total - shift.sum(-1) / total.square()
        least, most = self.extent(lower, upper)
        tangent = middle.exp()
        flat = (least * most)[..., None]
        above = _in_inputs(-tangent * flat, own)
        above_shift = most + least - ((tangent * (1 - middle)).sum(-1)) * flat[..., 0]
        fine = torch.stack([part.isfinite() for part in (below.sum(-1), below_shift, above.sum(-1), above_shift)]).all(
            0
        )
        fine = fine & (high.amax(-1) < 300)
        return Planes(
            torch.where(fine[..., None], below, 0.0), torch.where(fine, below_shift, least),
            torch.where(fine[..., None], above, 0.0), torch.where(fine, above_shift, most),
        )  # fmt: skip

    def jacobian(self, lower: Tensor, upper: Tensor) -> Interval:
        """pₖ(δₖⱼ − pⱼ)."""
        return probability_jacobian(*self.extent(lower, upper))


def _in_inputs(slopes: Tensor, own: Tensor) -> Tensor:
    """Slopes (…, M, K) in d = z − zₖ as slopes in z."""
    others = slopes.masked_fill(own, 0)
    return others - torch.where(own, others.sum(-1, keepdim=True), 0.0)


def _log_probabilities(lower: Tensor, upper: Tensor) -> Interval:
    """Exact ranges (…, K) of log softmax over boxes: one input at an end, the others at their other end."""
    low, high = lower - torch.logaddexp(lower, _others(upper)), upper - torch.logaddexp(upper, _others(lower))
    # An input that is −∞ for certain has no probability, and nothing to round.
    share = _slack(lower.shape[-1])
    slack = (share * (1 + part.abs().nan_to_num(posinf=0.0)) for part in (low, high))
    return low - next(slack), (high + next(slack)).clamp_max(0)


def _others(vectors: Tensor) -> Tensor:
    """The logsumexp of all but one, for every one (…, K): of those before it and those after it."""
    nothing = torch.full_like(vectors[..., :1], -torch.inf)
    before = torch.cat([nothing, torch.logcumsumexp(vectors[..., :-1], -1)], -1)
    after = torch.cat([torch.logcumsumexp(vectors[..., 1:].flip(-1), -1).flip(-1), nothing], -1)
    return torch.logaddexp(before, after)
