"""Properties of a network over boxes of inputs: what a VNN-LIB file says, as plain arrays.

A VNN-LIB file describes counterexamples. Where no input and its output fulfil it ("unsat"), the property holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One way of being a counterexample: lower ≤ x ≤ upper (D,), and rows·y ≤ bounds for every row, (M, K) and (M,).

    Of the bounds `strict` (M,) says which are not to be reached.
    """

    lower: Array
    upper: Array
    rows: Array
    bounds: Array
    strict: tuple[bool, ...] = ()

    def contains(self, x: Array, y: Array, tolerance: float = 0.0) -> bool:
        """Whether an input (D,) with this output (K,) is such a counterexample; bounds are widened by `tolerance`."""
        inside = bool(np.all((x >= self.lower - tolerance) & (x <= self.upper + tolerance)))
        excess = self.rows @ y - self.bounds
        open_ends = np.array(self.strict or [False] * len(self.bounds), dtype=bool)
        reached = np.where(open_ends & (tolerance == 0), excess < 0, excess <= tolerance)
        return inside and bool(reached.all())


@dataclass(frozen=True)
class Property:
    """All ways of being a counterexample, for a network of `inputs` values in row-major order and `outputs` values."""

    inputs: int
    outputs: int
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Counterexamples:
    """What is written as VNN-LIB: inputs in one box, whose outputs fulfil any one of some inequalities.

    `lower` and `upper` have the shape of the network's input, (1, C, H, W); each row is coefficients (K,) and a bound, and is
    fulfilled where coefficients·y ≤ bound. All numbers are those of float32.
    """

    lower: NDArray[np.float32]
    upper: NDArray[np.float32]
    rows: tuple[tuple[tuple[float, ...], float], ...]

    @property
    def outputs(self) -> int:
        """K."""
        return len(self.rows[0][0])

    def __post_init__(self) -> None:
        assert self.lower.shape == self.upper.shape
        assert bool((self.lower <= self.upper).all())
        for coefficients, bound in self.rows:
            assert all(math.isfinite(value) and float(np.float32(value)) == value for value in (*coefficients, bound))

    def as_property(self) -> Property:
        """The same as one case for each row."""
        lower, upper = (part.astype(np.float64).ravel() for part in (self.lower, self.upper))
        cases = tuple(_case(lower, upper, coefficients, bound) for coefficients, bound in self.rows)
        return Property(lower.size, self.outputs, cases)


def _case(lower: Array, upper: Array, coefficients: Sequence[float], bound: float) -> Case:
    return Case(lower, upper, np.array([coefficients]), np.array([bound]), (False,))
