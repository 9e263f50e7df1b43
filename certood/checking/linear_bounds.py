"""Linear bounds of rows of logits over a ball of images, from the slopes that a certificate gives."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from certood.checking.network import Network
from certood.checking.steps import LEAST, Array, Box, down, product_below, share, size_above, up

# Neurons that are bounded at once.
CHUNK = 512


@dataclass(frozen=True)
class Ball:
    """{x : ‖x − centre‖_p ≤ radius} ∩ [0, 1]^d, p = `norm` being inf, 2 or 1; `centre` (d,) in [0, 1]."""

    centre: Array
    radius: float
    norm: float

    @cached_property
    def box(self) -> Box:
        """The box around it, rounded outwards."""
        lower, upper = down(self.centre - self.radius), up(self.centre + self.radius)
        return Box(np.maximum(lower, 0), np.minimum(upper, 1))

    def holds(self, lower: Array, upper: Array) -> bool:
        """Whether a box (d,), (d,) is inside it; exact."""
        if bool(((lower < 0) | (upper > 1)).any()):
            return False
        ends = zip(self.centre.tolist(), lower.tolist(), upper.tolist(), strict=True)
        furthest = [max(Fraction(at) - Fraction(low), Fraction(high) - Fraction(at)) for at, low, high in ends]
        radius = Fraction(self.radius)
        if self.norm == math.inf:
            return max(furthest) <= radius
        if self.norm == 2:
            return sum(one**2 for one in furthest) <= radius**2
        return sum(furthest) <= radius

    def fills(self, lower: Array, upper: Array) -> bool:
        """Whether a box reaches as far as the largest one inside it, but for what rounding to float32 takes."""
        half = half_width(self.norm, self.radius, len(self.centre))
        low, high = np.maximum(self.centre - half, 0), np.minimum(self.centre + half, 1)
        return bool(((lower <= low + rounded_away(low)) & (upper >= high - rounded_away(high))).all())

    def least(self, rows: Array) -> Array:
        """A lower bound (R,) of rows·x over the ball: the better of the box and of the dual norm."""
        lower, upper = self.box
        found = down(product_below(np.maximum(rows, 0), lower) + product_below(np.minimum(rows, 0), upper))
        if self.norm == math.inf:
            return found
        with np.errstate(over="ignore"):
            size = np.sqrt((rows**2).sum(1)) if self.norm == 2 else np.abs(rows).max(1)
        reach = up(self.radius * (size * (1 + share(rows.shape[1])) + 1e-150) * (1 + share(1)))
        return np.maximum(found, down(product_below(rows, self.centre) - reach))


def half_width(norm: float, radius: float, pixels: int) -> float:
    """Of the largest box inside a ball around its centre, rounded: ε, ε/√d or ε/d."""
    return radius if norm == math.inf else radius / (math.sqrt(pixels) if norm == 2 else pixels)


def fills_some_ball(lower: Array, upper: Array, half: float) -> bool:
    """Whether a box is the largest one, of this half-width, around some image, cut off at 0 and 1, but for rounding to float32.

    The centre lies in [0, 1], no further than `half` from either end, and as far from each that is not cut off.
    """
    least = np.maximum(np.where(lower > 0, lower + half - rounded_away(lower), 0), upper - half)
    most = np.minimum(np.where(upper < 1, upper - half + rounded_away(upper), 1), lower + half)
    return bool(((lower >= 0) & (upper <= 1) & (least <= most + 1e-14)).all())


def rounded_away(ends: Array) -> Array:
    """By how much ends of a box that was rounded inwards to float32 may lie inside: two units in the last place by what rounds
    it, a third because such a unit may be that of the next power of two, and what float64 rounds of ends in [0, 1]."""
    return 3 * np.spacing(np.abs(ends).astype(np.float32)).astype(np.float64) + 1e-14


class LinearBounds:
    """Boxes of every value of a network over a ball, and lower bounds of rows of its logits.

    `slopes` are those of the lower lines of every ReLU, by the step's name, and `last_slopes`, if there are any, those of `last`.
    The box before a ReLU is that of intervals, and for neurons whose sign that leaves open also that of linear bounds. Raises
    ValueError where slopes are missing or out of [0, 1].
    """

    def __init__(
        self,
        network: Network,
        ball: Ball,
        slopes: Mapping[str, Sequence[float]],
        last_slopes: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.network, self.ball, self.given = network, ball, slopes
        self.slopes: dict[str, Array] = {}
        self.last_slopes: dict[str, Array] = {}
        self.boxes = [ball.box]
        bent = {source for placed in network.steps if placed.step.bends for source in placed.inputs}
        for place, placed in enumerate(network.steps, start=1):
            inputs = [self.boxes[source] for source in placed.inputs]
            self.boxes.append(placed.step.box(inputs))
            if placed.step.bends:
                chosen = self.slopes_of(placed.name, inputs[0])
                last = (last_slopes or {}).get(placed.name, chosen)
                self.slopes[placed.name] = np.array(chosen, dtype=np.float64)
                self.last_slopes[placed.name] = np.array(last, dtype=np.float64)
                if {self.slopes[placed.name].shape, self.last_slopes[placed.name].shape} != {inputs[0].lower.shape}:
                    raise ValueError(f"expected {len(inputs[0].lower)} slopes for {placed.name}")
            if place in bent:
                self._tighten(place)
        if unknown := {*slopes, *(last_slopes or {})} - self.slopes.keys():
            raise ValueError(f"there are slopes for {min(unknown)}, which is no ReLU of the network")

    def slopes_of(self, name: str, box: Box) -> Sequence[float] | Array:
        """The slopes of a ReLU that reads values in this box: those that were given."""
        return self.given.get(name, ())

    def last(self, rows: Array) -> Array:
        """Lower bounds (R,) of rows (R, K) of the logits that decide, by either slopes."""
        return np.maximum(self.lower(rows), self._lower(rows, len(self.network.steps), self.last_slopes))

    def lower(self, rows: Array) -> Array:
        """Lower bounds (R,) of rows (R, K) of the logits."""
        return self._lower(rows, len(self.network.steps), self.slopes)

    def _lower(self, rows: Array, last: int, slopes: Mapping[str, Array]) -> Array:
        """Lower bounds (R,) of rows (R, m) of a value."""
        pending: dict[int, Array] = {last: rows}
        constant = np.zeros(len(rows))
        for index in range(last, 0, -1):
            if index not in pending:
                continue
            placed = self.network.steps[index - 1]
            inputs = [self.boxes[source] for source in placed.inputs]
            parts, added = placed.step.back(pending.pop(index), inputs, slopes.get(placed.name))
            constant = down(constant + added)
            for source, part in zip(placed.inputs, parts, strict=True):
                if source in pending:
                    total = pending[source] + part
                    rounded = share(1) * size_above(total, self.boxes[source].largest) + LEAST
                    pending[source], constant = total, down(constant - rounded)
                else:
                    pending[source] = part
        # Nothing that is not a number is a bound.
        found = down(self.ball.least(pending[0]) + constant) if 0 in pending else constant
        return np.where(np.isnan(found), -np.inf, found)

    def _tighten(self, place: int) -> None:
        """Make the box of a value tighter where its sign is not known."""
        lower, upper = (end.copy() for end in self.boxes[place])
        unsure = np.flatnonzero((lower < 0) & (upper > 0))
        for start in range(0, len(unsure), CHUNK):
            chosen = unsure[start : start + CHUNK]
            rows = np.zeros((len(chosen), len(lower)))
            rows[np.arange(len(chosen)), chosen] = 1
            lower[chosen] = np.maximum(lower[chosen], self._lower(rows, place, self.slopes))
            upper[chosen] = np.minimum(upper[chosen], -self._lower(-rows, place, self.slopes))
        self.boxes[place] = Box(lower, upper)
