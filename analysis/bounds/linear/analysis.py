"""What is known of a graph over a ball, and bounds of any rows of its logits that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Bounds, Region, or_infinite
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.backward import BackwardPass
from certood.analysis.bounds.linear.choices import Choices
from certood.analysis.bounds.linear.nodes import NodeBounds
from certood.analysis.bounds.linear.optimised import Ascent, optimised_least
from certood.analysis.bounds.linear.rows import dense, signed
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.memory import CHUNK_BYTES, COPIES
from certood.analysis.bounds.operations.base import Interval, Rows
from certood.analysis.bounds.operations.precision import largest, outward_sum, unit_roundoff


@dataclass(frozen=True)
class LinearBound:
    """rows·(x − centre) + constant bounds a function of the image x from below over the ball: (N, R, C, H, W) and (N, R)."""

    rows: Tensor
    constant: Tensor


@dataclass
class Analysis:
    """Boxes of every node of a graph over a ball, and linear bounds of any rows of a node, with rows in one precision.

    `kind` is one of METHODS, and `instead_of` the one that was asked for where it did not fit into `max_memory` (bytes). With
    an `ascent` the slopes of ReLU are optimised for the rows that are bounded. Tighter boxes usually give tighter
    rows, but not always: `simpler` is the analysis by the method before, with which rows are intersected.
    """

    nodes: NodeBounds
    kind: str
    max_memory: float
    dtype: torch.dtype = torch.float64
    instead_of: str = ""
    ascent: Ascent | None = None
    simpler: "Analysis | None" = None

    @property
    def graph(self) -> Graph:
        """The network."""
        return self.nodes.graph

    @property
    def ball(self) -> Region:
        """The images over which the bounds hold."""
        return self.nodes.ball

    @property
    def boxes(self) -> dict[int, Interval]:
        """A box (N, *shape) for every node."""
        return self.nodes.boxes

    @property
    def references(self) -> Mapping[int, Tensor]:
        """The values of every node at the centre of the ball."""
        return self.nodes.references

    @cached_property
    def backward(self) -> BackwardPass:
        """What carries rows back to the image."""
        before = self.simpler.backward if self.simpler is not None else None
        return BackwardPass(self.nodes, self.dtype, self.max_memory, before)

    @property
    def method(self) -> str:
        """What computed the bounds, in words: also where another method was asked for."""
        return f"{self.kind} ({self.instead_of} exceeded the memory budget)" if self.instead_of else self.kind

    def logits(self) -> Bounds:
        """Bounds of the logits (N, K)."""
        lower, upper = self.boxes[len(self.graph.nodes) - 1]
        return Bounds(lower, upper, self.method)

    def rows(self, coefficients: Tensor, constant: Tensor | None = None) -> Bounds:
        """Bounds (N, M) of coefficients·f(x) + constant, for coefficients (N, M, K) and constant (N, M) or None."""
        shift = coefficients.new_zeros((), dtype=torch.float64) if constant is None else constant
        lowers, gained = self._lower(coefficients, both=True)
        lower, negated = lowers.chunk(2, 1)
        method = self.method
        if self.simpler is not None and gained:
            method = f"{method} ({self.simpler.method} was tighter in {gained} of {lowers.numel()})"
        lower, upper = outward_sum(lower, shift), -outward_sum(negated, -shift)
        return Bounds(or_infinite(lower, -1), or_infinite(upper, 1), method)

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K) of the logits."""
        return self._lower(coefficients)[0]

    def _lower(self, coefficients: Tensor, *, both: bool = False) -> tuple[Tensor, int]:
        """The better of the linear bound, of the box of the logits and of the method before; how often that one won.

        With `both` of the rows and of their negatives (N, 2M).
        """
        (low, high), size = self.boxes[len(self.graph.nodes) - 1], coefficients.abs()
        middle = (coefficients @ ((low + high) / 2)[..., None])[..., 0]
        share = 4 * (coefficients.shape[-1] + 8) * unit_roundoff(torch.float64)
        half = torch.add((high - low) / 2, largest(low, high), alpha=share)
        reach = (size @ half[..., None])[..., 0]
        lower, gained = torch.cat([middle - reach, -middle - reach], 1) if both else middle - reach, 0
        if self.kind != "interval":
            start = self._start(len(self.graph.nodes) - 1, coefficients, both=both)
            lower, gained = self._least(coefficients, start, lower, both=both)
        return or_infinite(lower, -1), gained

    def _least(self, coefficients: Tensor, start: Tensor, known: Tensor, *, both: bool) -> tuple[Tensor, int]:
        """The better of what is known (N, R), of the linear bound and of that of the method before; how often that one won.

        `start` is what the rows are at the reference of the logits, at least.
        """
        own = outward_sum(start, self.least_change(len(self.graph.nodes) - 1, coefficients, both=both))
        lower = torch.fmax(known, own)
        if self.simpler is None:
            return lower, 0
        other, _ = self.simpler._least(coefficients, start, known, both=both)
        return torch.fmax(lower, other), int((other > lower + 1e-9).sum())

    def _start(self, node: int, rows: Tensor, *, both: bool) -> Tensor:
        """What rows are at the reference of a node, at least."""
        start, loss = self.nodes.at_reference(node, rows)
        return torch.cat([start - loss, -start - loss], 1) if both else start - loss

    def least(self, node: int, rows: Tensor, *, both: bool = False) -> Tensor:
        """Lower bounds (N, R) of rows (N, R, *shape) of a node; with `both` of the rows and of their negatives, (N, 2R)."""
        start = self._start(node, rows, both=both)
        return or_infinite(outward_sum(start, self.least_change(node, rows, both=both)), -1)

    def least_change(self, node: int, rows: Rows, *, both: bool = False) -> Tensor:
        """Lower bounds (N, R) of rows·(y − y₀), rows (N, R, *shape), for the value y of a node and its reference y₀, in chunks
        that keep to the memory budget; with `both` of the rows and of their negatives, (N, 2R)."""
        signs = 1 + both
        most = max(other.shape.numel() for other in self.graph.nodes[: node + 1])
        chunk = max(1, int(self.max_memory // (COPIES * self.dtype.itemsize * most * len(self.ball) * signs)))
        # What goes back through matrices goes image by image, windows all together.
        size = self.graph.row_size(node, rows.size) * len(self.ball) if isinstance(rows, Windows) else most
        cached = max(1, CHUNK_BYTES // (self.dtype.itemsize * size * signs))
        # The graph of an ascent keeps every layer's coefficients.
        chunk = max(1, min(chunk // len(self.graph.nodes), cached)) if self.ascent else min(chunk, cached)
        parts = rows.split(chunk) if isinstance(rows, Windows) else rows.split(chunk, 1)
        found = []
        for part in parts:
            if self.ascent is not None and self.ascent.shared and both:
                # What raises a lower bound and what lowers an upper one are not the same slopes.
                sides = [optimised_least(self.backward, node, side, self.ascent) for side in (part, -part)]
                least = torch.cat(sides, 1)
            elif self.ascent is not None:
                least = optimised_least(self.backward, node, signed(part) if both else part, self.ascent)
            else:
                reached, constant = self.backward.to_image(node, part, both=both)
                least = outward_sum(self.ball.least(reached), constant)
            found.append(least.unflatten(1, (signs, -1)))
        return torch.cat(found, 2).flatten(1)

    def linear_lower(self, node: int, rows: Tensor, choices: Choices | None = None) -> LinearBound:
        """A linear function of the image that bounds rows (N, R, *shape) of a node from below over the ball."""
        reached, constant = self.backward.to_image(node, rows, choices=choices)
        start, loss = self.nodes.at_reference(node, rows)
        return LinearBound(dense(reached).to(torch.float64), outward_sum(start - loss, constant))
