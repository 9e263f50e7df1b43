"""Bounds of OOD scores over a ball: what `certood.scores` asks of a network, answered by an analysis of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Bounds, Region, or_infinite
from certood.analysis.bounds.graph import Graph
from certood.scores import Interval, Logits, Score

# Two ways of rounding the same number differ by a few units in the last place; so much is added outwards.
SLACK = 1e-13


class RowBounds(Protocol):
    """An engine's analysis of a network over a ball, of which rows of the logits can be bounded."""

    @property
    def graph(self) -> Graph:
        """The network."""
        ...

    @property
    def ball(self) -> Region:
        """Where its inputs lie."""
        ...

    @property
    def method(self) -> str:
        """What computes the bounds."""
        ...

    def rows(self, coefficients: Tensor, constant: Tensor | None = None) -> Bounds:
        """Bounds (N, M) of rows (N, M, K) of the logits, plus constants (N, M) or nothing."""
        ...

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K) of the logits."""
        ...


@dataclass(frozen=True)
class AnalysedLogits:
    """The logits of an analysis as the bounds of a score read them."""

    analysis: RowBounds

    @cached_property
    def centre(self) -> Tensor:
        """The logits (N, K) at the centre of the ball."""
        with torch.no_grad():
            found: Tensor = self.analysis.graph(self.analysis.ball.centre)
        return found

    def rows(self, coefficients: Tensor) -> Interval:
        """Bounds (N, M) of rows (N, M, K) of the logits."""
        found = self.analysis.rows(coefficients)
        return Interval(found.lower, found.upper)

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K) of the logits."""
        return self.analysis.lower_rows(coefficients)


def logits_of(analysis: RowBounds) -> Logits:
    """What the bounds of a score read of an analysis."""
    return Logits(AnalysedLogits(analysis))


def score_bounds(analysis: RowBounds, score: Score) -> Bounds:
    """Bounds (N,) of a score of the network's outputs over the ball of an analysis.

    Raises CannotCertify for a score that has no bounds.
    """
    lower, upper = score.bounds(logits_of(analysis))
    return Bounds(_outwards(lower, -1), _outwards(upper, 1), analysis.method)


def score_upper(logits: Logits, score: Score) -> Tensor:
    """Upper bounds (N,) of a score alone: for the energy one row of the logits, a fraction of the work of both sides."""
    return _outwards(score.upper(logits), 1)


def score_lower(logits: Logits, score: Score) -> Tensor:
    """Lower bounds (N,) of a score alone."""
    return _outwards(score.lower(logits), -1)


def _outwards(values: Tensor, sign: int) -> Tensor:
    return or_infinite(values + sign * SLACK * (1 + values.abs()), sign)
