"""The steps of a network that the checker knows: values, boxes, and linear bounds carried back through them.

All is float64. A sum of n products is within (n + 1)·2⁻⁵³·Σ|products| of the real one, to first order, in whatever order it is
added up (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); `share` is a little more than that factor.
Rows A (R, m) and constants c (R,) mean A·y + c, and a step replaces them by rows of its inputs that are no larger on their boxes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# What underflows in one product.
LEAST = 1e-300


class Box(NamedTuple):
    """lower ≤ x ≤ upper, (m,)."""

    lower: Array
    upper: Array

    @property
    def largest(self) -> Array:
        """The largest magnitudes."""
        return np.maximum(np.abs(self.lower), np.abs(self.upper))


def share(terms: int) -> float:
    """By how much a sum of so many products may be off, as a share of the sum of their magnitudes; also where that is rounded."""
    return 1.1 * (terms + 8) * 2.0**-53


def down(values: Array) -> Array:
    """The next smaller numbers: below what an operation gave before it was rounded."""
    return np.nextafter(values, -np.inf)


def up(values: Array) -> Array:
    """The next larger numbers."""
    return np.nextafter(values, np.inf)


def product_below(rows: Array, column: Array) -> Array:
    """A lower bound (R,) of rows @ column."""
    size = np.abs(rows) @ np.abs(column)
    return down(rows @ column - share(rows.shape[1]) * size - rows.shape[1] * LEAST)


def size_above(rows: Array, column: Array) -> Array:
    """An upper bound (R,) of |rows| @ column, for a column ≥ 0."""
    return up((np.abs(rows) @ column) * (1 + share(rows.shape[1])) + rows.shape[1] * LEAST)


def lost(box: Box) -> float:
    """What products that underflow in one row may be off, for the values that it is multiplied by in a box."""
    return LEAST * len(box.lower) * (1 + float(box.largest.sum()))


class Step(ABC):
    """y = g(x₁, …), all of them flattened."""

    @abstractmethod
    def value(self, inputs: Sequence[Array]) -> Array:
        """y (m,), rounded as it comes: for comparisons with other evaluations only."""

    @abstractmethod
    def box(self, inputs: Sequence[Box]) -> Box:
        """A box that contains y for inputs in boxes."""

    @abstractmethod
    def back(self, rows: Array, inputs: Sequence[Box], slopes: Array | None) -> tuple[list[Array], Array]:
        """Rows (R, n) of every input and constants (R,): Σ rows·xᵢ + constants ≤ `rows`·y for inputs in these boxes."""

    @property
    def bends(self) -> bool:
        """Whether the box of the input decides how tight `back` is, and slopes are to be given."""
        return False


@dataclass(frozen=True)
class Linear(Step):
    """y = Wx + b, with W (m, n) and b (m,) exactly as they are."""

    weight: Array
    bias: Array

    def value(self, inputs: Sequence[Array]) -> Array:
        """Wx + b."""
        return self.weight @ inputs[0] + self.bias

    def box(self, inputs: Sequence[Box]) -> Box:
        """The centre through W, the radius through |W|, and what rounding may cost of both."""
        (given,) = inputs
        middle = given.lower / 2 + given.upper / 2
        radius = up(np.maximum(given.upper - middle, middle - given.lower))
        centre = self.weight @ middle + self.bias
        rounded = share(len(middle) + 1) * (size_above(self.weight, np.abs(middle)) + np.abs(self.bias))
        reach = up(up(size_above(self.weight, radius) + rounded) + LEAST * len(middle))
        return Box(down(centre - reach), up(centre + reach))

    def back(self, rows: Array, inputs: Sequence[Box], slopes: Array | None) -> tuple[list[Array], Array]:
        """A·W, rounded; what that may be off is multiplied by the largest |x|."""
        (given,) = inputs
        rounded = share(rows.shape[1]) * size_above(rows, size_above(self.weight, given.largest))
        return [rows @ self.weight], down(product_below(rows, self.bias) - up(rounded + rows.shape[1] * lost(given)))


@dataclass(frozen=True)
class Scale(Step):
    """y = x·factor, or x/factor where `divide`, elementwise: rounded once.

    The factor meant is within `doubt` of the one given, relative to it; `doubt` is at most a few 2⁻⁵³.
    """

    factor: Array
    divide: bool = False
    doubt: float = 0.0

    def _scaled(self, values: Array) -> Array:
        return values / self.factor if self.divide else values * self.factor

    def value(self, inputs: Sequence[Array]) -> Array:
        """x·factor or x/factor."""
        return self._scaled(inputs[0])

    def box(self, inputs: Sequence[Box]) -> Box:
        """Ends swap where the factor is negative."""
        one, two = self._scaled(inputs[0].lower), self._scaled(inputs[0].upper)
        lower, upper = down(np.minimum(one, two)), up(np.maximum(one, two))
        if self.doubt:
            slack = up(2 * self.doubt * np.maximum(np.abs(lower), np.abs(upper)))
            lower, upper = down(lower - slack), up(upper + slack)
        return Box(lower, upper)

    def back(self, rows: Array, inputs: Sequence[Box], slopes: Array | None) -> tuple[list[Array], Array]:
        """Scaled rows, off by half a unit in the last place, and by the doubt."""
        found = self._scaled(rows)
        off = share(1) + 2 * self.doubt
        return [found], down(-off * size_above(found, inputs[0].largest) - lost(inputs[0]))


@dataclass(frozen=True)
class Shift(Step):
    """y = x + shift, elementwise."""

    shift: Array

    def value(self, inputs: Sequence[Array]) -> Array:
        """x + shift."""
        return inputs[0] + self.shift

    def box(self, inputs: Sequence[Box]) -> Box:
        """Both ends shifted."""
        return Box(down(inputs[0].lower + self.shift), up(inputs[0].upper + self.shift))

    def back(self, rows: Array, inputs: Sequence[Box], slopes: Array | None) -> tuple[list[Array], Array]:
        """The same rows."""
        return [rows], product_below(rows, self.shift)


@dataclass(frozen=True)
class Sum(Step):
    """y = x₁ + x₂."""

    def value(self, inputs: Sequence[Array]) -> Array:
        """x₁ + x₂."""
        return inputs[0] + inputs[1]

    def box(self, inputs: Sequence[Box]) -> Box:
        """Sums of the ends."""
        one, two = inputs
        return Box(down(one.lower + two.lower), up(one.upper + two.upper))

    def back(self, rows: Array, inputs: Sequence[Box], slopes: Array | None) -> tuple[list[Array], Array]:
        """The same rows for both."""
        return [rows, rows], np.zeros(len(rows))


@dataclass(frozen=True)
class Join(Step):
    """y = (x₁, x₂, …), one after the other."""

    def value(self, inputs: Sequence[Array]) -> Array:
        """All of them."""
        return np.concatenate(inputs)

    def box(self, inputs: Sequence[Box]) -> Box:
        """All ends."""
        return Box(np.concatenate([one.lower for one in inputs]), np.concatenate([one.upper for one in inputs]))

    def back(self, rows: Array, inputs: Sequence[Box], slopes: Array | None) -> tuple[list[Array], Array]:
        """To every input its columns."""
        ends = np.cumsum([len(one.lower) for one in inputs])[:-1]
        return np.split(rows, ends, axis=1), np.zeros(len(rows))


class Select(Step):
    """yᵢ = x at `index` i (m,), and 0 where that is −1. No place is taken twice, or ValueError is raised."""

    def __init__(self, index: NDArray[np.int64]) -> None:
        self.index, self.taken = index, index >= 0
        if len(np.unique(index[self.taken])) != self.taken.sum() or bool((index < -1).any()):
            raise ValueError("a place is taken twice, or there is none such")

    def _selected(self, values: Array) -> Array:
        found = np.zeros(len(self.index))
        found[self.taken] = values[self.index[self.taken]]
        return found

    def value(self, inputs: Sequence[Array]) -> Array:
        """The values there."""
        return self._selected(inputs[0])

    def box(self, inputs: Sequence[Box]) -> Box:
        """The ends there."""
        return Box(self._selected(inputs[0].lower), self._selected(inputs[0].upper))

    def back(self, rows: Array, inputs: Sequence[Box], slopes: Array | None) -> tuple[list[Array], Array]:
        """Every column where it came from, zeros elsewhere."""
        found = np.zeros((len(rows), len(inputs[0].lower)))
        found[:, self.index[self.taken]] = rows[:, self.taken]
        return [found], np.zeros(len(rows))


@dataclass(frozen=True)
class Relu(Step):
    """y = max(x, 0)."""

    def value(self, inputs: Sequence[Array]) -> Array:
        """max(x, 0)."""
        return np.maximum(inputs[0], 0)

    def box(self, inputs: Sequence[Box]) -> Box:
        """Both ends, cut off."""
        return Box(np.maximum(inputs[0].lower, 0), np.maximum(inputs[0].upper, 0))

    def back(self, rows: Array, inputs: Sequence[Box], slopes: Array | None) -> tuple[list[Array], Array]:
        """A positive coefficient takes a lower line, a negative one an upper line.

        On [l, u] with l < 0 < u: max(x, 0) ≥ α·x for every slope α in [0, 1], and max(x, 0) ≤ λ·(x − l) for every λ ≥ u/(u − l).
        """
        (given,) = inputs
        if slopes is None or not bool(((slopes >= 0) & (slopes <= 1)).all()):
            raise ValueError("a slope is not in [0, 1]")
        lower, upper = given
        off, on = upper <= 0, lower >= 0
        bent = ~(off | on)
        low, high = np.where(bent, lower, -1.0), np.where(bent, upper, 1.0)
        steepness = up(high / down(high - low))
        below = np.where(on, 1.0, np.where(off, 0.0, slopes))
        above = np.where(on, 1.0, np.where(off, 0.0, steepness))
        intercept = np.where(bent, up(-steepness * low), 0.0)
        negative = np.minimum(rows, 0)
        found = np.maximum(rows, 0) * below + negative * above
        rounded = share(1) * size_above(found, given.largest) + lost(given)
        return [found], down(product_below(negative, intercept) - rounded)

    @property
    def bends(self) -> bool:
        """At 0."""
        return True
