"""Bounds of every node of a graph over a ball: intervals forwards, linear functions backwards (CROWN).

Zhang et al., NeurIPS 2018 (arXiv 1811.00866); Xu et al., NeurIPS 2020 (arXiv 2002.12920). In float64; rows may be in
float32, with what rounding may cost subtracted (`rounding`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Bounds, Region, or_infinite
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.choices import Choices
from certood.analysis.bounds.linear.optimised import optimised_least
from certood.analysis.bounds.linear.rounding import (
    EXTRA,
    casting_loss,
    elementwise_loss,
    linear_loss,
    passing_loss,
    residual,
)
from certood.analysis.bounds.linear.rows import (
    Door,
    Passage,
    magnitude,
    met,
    relaxed,
    relaxed_each,
    relaxed_through,
    signed,
    summed,
)
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.memory import CHUNK_BYTES, COPIES
from certood.analysis.bounds.operations.base import (
    Elementwise,
    Interval,
    JointRelaxation,
    LinearOperation,
    Operation,
    Rows,
)
from certood.analysis.bounds.operations.precision import largest, least_normal, unit_roundoff

# So many rows are worth a matrix of only those lines that count.
MANY_ROWS = 32


@dataclass(frozen=True)
class LinearBound:
    """rows·(x − centre) + constant bounds a function of the image x from below over the ball: (N, R, C, H, W) and (N, R)."""

    rows: Tensor
    constant: Tensor


@dataclass
class Analysis:
    """What is known of a graph over a ball: a box for every node, and linear bounds of any rows of a node.

    Rows are propagated in differences from the values at the centre of the ball, `centre_values` where they are known already.
    `kind` is one of METHODS, and `instead_of` the one that was asked for where it did not fit into `max_memory`. `passages`
    keeps the relaxations of elementwise nodes, whose boxes are final once something after them is bounded; `widths` are those
    of intervals, before linear bounds tightened them.

    With `iterations` above 0 the slopes of ReLU are optimised for every row that is bounded. Tighter boxes usually give
    tighter rows, but not always: `simpler` is the analysis by the method before, with which rows are intersected.
    """

    graph: Graph
    ball: Region
    kind: str
    max_memory: float
    dtype: torch.dtype = torch.float64
    instead_of: str = ""
    iterations: int = 0
    simpler: "Analysis | None" = None
    centre_values: Mapping[int, Tensor] | None = None
    boxes: dict[int, Interval] = field(default_factory=dict)
    widths: dict[int, Tensor] = field(default_factory=dict)
    passages: dict[int, Passage] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    residuals: dict[int, Tensor] = field(default_factory=dict)
    underflows: dict[int, Tensor] = field(default_factory=dict)
    doors: dict[int, list[Door]] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """What computed the bounds, in words: also where another method was asked for."""
        return f"{self.kind} ({self.instead_of} exceeded the memory budget)" if self.instead_of else self.kind

    @cached_property
    def references(self) -> Mapping[int, Tensor]:
        """The values of every node at the centre of the ball."""
        with torch.no_grad():
            return self.centre_values or self.graph.values(self.ball.centre)

    @cached_property
    def operations(self) -> Sequence[Operation]:
        """The operations of the graph in the precision of the rows."""
        if self.dtype == torch.float32:
            return self.graph.rounded
        return [node.operation for node in self.graph.nodes]

    def logits(self) -> Bounds:
        """Bounds of the logits (N, K)."""
        lower, upper = self.boxes[len(self.graph.nodes) - 1]
        return Bounds(lower, upper, self.method)

    def rows(self, coefficients: Tensor, constant: Tensor | None = None) -> Bounds:
        """Bounds (N, M) of coefficients·f(x) + constant, for coefficients (N, M, K) and constant (N, M) or None."""
        shift = torch.zeros((), dtype=torch.float64) if constant is None else constant
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
        box, size = self.logits(), coefficients.abs()
        middle = (coefficients @ ((box.lower + box.upper) / 2)[..., None])[..., 0]
        share = 4 * (coefficients.shape[-1] + 8) * unit_roundoff(torch.float64)
        half = torch.add((box.upper - box.lower) / 2, largest(box.lower, box.upper), alpha=share)
        reach = (size @ half[..., None])[..., 0]
        lower = torch.cat([middle - reach, -middle - reach], 1) if both else middle - reach
        gained = 0
        if self.kind != "interval":
            lower = torch.fmax(lower, self.least(len(self.graph.nodes) - 1, coefficients, both=both))
        if self.simpler is not None:
            other, _ = self.simpler._lower(coefficients, both=both)
            gained = int((other > lower + 1e-9).sum())
            lower = torch.fmax(lower, other)
        return or_infinite(lower, -1), gained

    def least(self, node: int, rows: Tensor, *, both: bool = False) -> Tensor:
        """Lower bounds (N, R) of rows (N, R, *shape) of a node; with `both` of the rows and of their negatives, (N, 2R)."""
        start, loss = self._at_centre(node, rows)
        change = self.least_change(node, rows, both=both)
        if both:
            start, loss = torch.cat([start, -start], 1), torch.cat([loss, loss], 1)
        return or_infinite(outward_sum(start - loss, change), -1)

    def _at_centre(self, node: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The value of rows at the reference of a node, and what it may be rounded by."""
        flat, point = rows.to(torch.float64).flatten(2), self.references[node].flatten(1)[..., None]
        share = 2 * (flat.shape[2] + 8) * unit_roundoff(torch.float64)
        return (flat @ point)[..., 0], share * (flat.abs() @ point.abs())[..., 0]

    def least_change(self, node: int, rows: Rows, *, both: bool = False) -> Tensor:
        """The same of rows·(y − y₀), for the value y of a node and its reference y₀, in chunks that keep to the memory budget."""
        signs = 1 + both
        most = max(other.shape.numel() for other in self.graph.nodes[: node + 1])
        chunk = max(1, int(self.max_memory // (COPIES * self.dtype.itemsize * most * len(self.ball) * signs)))
        # What goes back through matrices goes image by image, windows all together.
        size = self.graph.row_size(node, rows.size) * len(self.ball) if isinstance(rows, Windows) else most
        cached = max(1, CHUNK_BYTES // (self.dtype.itemsize * size * signs))
        # The graph of an ascent keeps every layer's coefficients, and every row has slopes of its own.
        chunk = max(1, min(chunk // len(self.graph.nodes), cached)) if self.iterations else min(chunk, cached)
        parts = rows.split(chunk) if isinstance(rows, Windows) else rows.split(chunk, 1)
        found = []
        for part in parts:
            if self.iterations:
                least = optimised_least(self, node, signed(part) if both else part, self.iterations)
            else:
                least = self.plain_least(node, part, both=both)
            found.append(least.unflatten(1, (signs, -1)))
        return torch.cat(found, 2).flatten(1)

    def plain_least(self, node: int, rows: Rows, *, both: bool = False) -> Tensor:
        """Lower bounds (N, R) of rows·(y − y₀) with CROWN's own slopes, all at once; with `both` (N, 2R)."""
        reached, constant = self.linear_change(node, rows, both=both)
        return outward_sum(self.ball.least(reached), constant)

    def linear_lower(self, node: int, rows: Tensor, choices: Choices | None = None) -> LinearBound:
        """A linear function of the image that bounds rows (N, R, *shape) of a node from below over the ball."""
        reached, constant = self.linear_change(node, rows, choices=choices)
        dense = (reached.dense() if isinstance(reached, Windows) else reached).to(torch.float64)
        start, loss = self._at_centre(node, rows)
        return LinearBound(dense, outward_sum(start - loss, constant))

    def linear_change(
        self, node: int, rows: Rows, *, both: bool = False, choices: Choices | None = None
    ) -> tuple[Rows, Tensor]:
        """Rows of the image, and constants in float64, that bound rows·(y − y₀) of a node from below.

        With `both`, rows stand for their negatives too until the first operation that is not linear.
        """
        pending: dict[int, Rows] = {node: rows.to(self.dtype)}
        constant = torch.zeros((), dtype=torch.float64, device=self.references[0].device)
        if self.dtype != torch.float64:
            constant = constant - self._lost(rows, partial(self._casting_loss, node))
        # All that is added up, by magnitude: what the sums may be rounded by.
        total, steps = constant.abs(), 1
        for index in range(node, 0, -1):
            if index not in pending:
                continue
            own, sources = pending.pop(index), self.graph.nodes[index].inputs
            if isinstance(self.operations[index], LinearOperation):
                parts, added = self._linear_step(index, own, started=index == node)
            else:
                if both:
                    pending = {place: signed(part) for place, part in pending.items()}
                    constant, total = _twice(constant), _twice(total)
                through = self._through(index, own) if choices is None else None
                if through is not None:
                    assert isinstance(own, Tensor)
                    parts, added = self._two_steps(index, through, own, both=both)
                    sources = self.graph.nodes[sources[0]].inputs
                else:
                    parts, added = self._curved_step(index, own, choices, both=both)
                both = False
            lost = self._underflow(index)
            constant, total, steps = constant + added - lost, total + added.abs() + lost, steps + 4
            for source, part in zip(sources, parts, strict=True):
                if source in pending:
                    pending[source] = summed(pending[source], part)
                    if not self._paid_later(source) and not isinstance(self.operations[source], Elementwise):
                        lost = self._lost(pending[source], partial(self._casting_loss, source))
                        constant, total = constant - lost, total + lost
                else:
                    pending[source] = part
        constant = constant - 2 * steps * unit_roundoff(torch.float64) * total
        return (signed(pending[0]), _twice(constant)) if both else (pending[0], constant)

    def _linear_step(self, index: int, own: Rows, *, started: bool) -> tuple[Sequence[Rows], Tensor]:
        """Rows of the inputs of a linear operation; constants are what rounding may cost."""
        operation = self.operations[index]
        assert isinstance(operation, LinearOperation)
        shapes = [self.graph.nodes[source].shape for source in self.graph.nodes[index].inputs]
        if self._paid_later(index) and not started:
            return operation.transpose_rows(own, shapes), self.references[0].new_zeros(())
        lost = self._lost(own, partial(self._linear_loss, index))
        return operation.transpose_rows(own, shapes), -lost

    def _curved_step(
        self, index: int, own: Rows, choices: Choices | None, *, both: bool = False
    ) -> tuple[Sequence[Rows], Tensor]:
        """Rows of the inputs of an operation that is not linear, and constants; with `both` for rows of either sign."""
        node, operation = self.graph.nodes[index], self.operations[index]
        if isinstance(operation, JointRelaxation):
            own = signed(own) if both else own
            dense = (own.dense() if isinstance(own, Windows) else own).to(torch.float64)
            boxes = [self.boxes[source] for source in node.inputs]
            shapes = [self.graph.nodes[source].shape for source in node.inputs]
            exact, added = operation.transpose_lower(dense, boxes, shapes)
            added = added - (dense * self.references[index][:, None]).flatten(2).sum(2)
            size = (dense.abs() * self.references[index].abs()[:, None]).flatten(2).sum(2)
            for source, part in zip(node.inputs, exact, strict=True):
                added = added + (part * self.references[source][:, None]).flatten(2).sum(2)
                size = size + (part.abs() * self.references[source].abs()[:, None]).flatten(2).sum(2)
                added = added - self._lost(part, partial(self._casting_loss, source))
            most = max(self.references[place].shape[1:].numel() for place in (index, *node.inputs))
            added = added - 2 * (most + 8) * unit_roundoff(torch.float64) * size
            return [part.to(self.dtype) for part in exact], added
        assert isinstance(operation, Elementwise)
        if choices is not None:
            return self._chosen_step(index, operation, own, choices)
        before, added = relaxed(own, self._passage(index, operation), both=both)
        return [before], added.to(torch.float64)

    def _chosen_step(
        self, index: int, operation: Elementwise, own: Rows, choices: Choices
    ) -> tuple[Sequence[Rows], Tensor]:
        """The same of an elementwise operation, with what is chosen of it."""
        source = self.graph.nodes[index].inputs[0]
        if operation.adjustable:
            before, added = self._chosen_lines(index, operation, own, choices)
        else:
            before, added = relaxed(own, self._passage(index, operation))
        added = added.to(torch.float64)
        if choices.reached is not None:
            choices.reached[index] = (own.dense() if isinstance(own, Windows) else own).detach()
        for multiple, place in choices.subtracted.get(index, ()):
            before = summed(before, -multiple)
            added = added - (multiple * (self.references[source] - place)[:, None]).flatten(2).sum(2)
        return [before], added

    def _chosen_lines(self, index: int, operation: Elementwise, own: Rows, choices: Choices) -> tuple[Rows, Tensor]:
        """Rows of the input of an operation whose lower lines are chosen, and constants."""
        source = self.graph.nodes[index].inputs[0]
        if index not in choices.met:
            planes = [*self.boxes[source], self.references[source], self.references[index]]
            choices.met[index] = [met(own, plane) for plane in (*planes, self._passage_loss(index, operation))]
        lower, upper, x, y, loss = choices.met[index]
        slope = choices.slope(index, own, lower, upper)
        passage = Passage.about(operation.lines_at(slope, lower, upper), x, y)
        return relaxed_each(own, passage.widened(loss).to(self.dtype))

    def _through(self, index: int, rows: Rows) -> Tensor | None:
        """The matrix before an elementwise operation that alone reads it, where many rows go back: through both at once."""
        if isinstance(rows, Windows) or rows.ndim != 3 or rows.shape[1] < MANY_ROWS:
            return None
        if not isinstance(self.operations[index], Elementwise):
            return None
        (source,) = self.graph.nodes[index].inputs
        operation = self.operations[source]
        matrix = operation.matrix if isinstance(operation, LinearOperation) else None
        if matrix is None or self.graph.readers[source] != [index]:
            return None
        size = len(rows) * matrix.numel() * self.dtype.itemsize
        return matrix if COPIES * size <= self.max_memory else None

    def _two_steps(self, index: int, matrix: Tensor, own: Tensor, *, both: bool) -> tuple[Sequence[Rows], Tensor]:
        """Rows of what a matrix reads, from rows of the elementwise operation after it; its gap pays for rounding in both."""
        operation = self.operations[index]
        assert isinstance(operation, Elementwise)
        passage = self._passage(index, operation)
        if index not in self.doors:
            self.doors[index] = Door.of(passage, matrix)
        found, added = relaxed_through(own, self.doors[index], both=both)
        return [found], added.to(torch.float64)

    def _lost(self, rows: Rows, loss: Callable[[], Tensor]) -> Tensor:
        """What rounding of a step may cost a bound of these rows, (N, R) or a zero."""
        plane = loss()
        if not plane.any():
            return plane.new_zeros(())
        return magnitude(rows, plane + least_normal(self.dtype)).to(torch.float64)

    def _reach(self, node: int) -> Tensor:
        """How far a node may lie from its reference, elementwise."""
        lower, upper = self.boxes[node]
        return torch.maximum(upper - self.references[node], self.references[node] - lower).clamp_min(0)

    def _underflow(self, index: int) -> Tensor:
        """What coefficients of the inputs of a node that are too small for their precision may cost (N, 1)."""
        if index not in self.underflows:
            node = self.graph.nodes[index]
            shapes = [self.graph.nodes[source].shape for source in node.inputs]
            products = node.operation.products(shapes, node.shape) if isinstance(node.operation, LinearOperation) else 1
            reaches = (self._reach(source) for source in node.inputs)
            reach = sum(one.reshape(len(one), -1).sum(1, keepdim=True) for one in reaches)
            assert isinstance(reach, Tensor)
            self.underflows[index] = 4 * (products + EXTRA) * least_normal(self.dtype) * (reach + 1)
        return self.underflows[index]

    def residual(self, index: int) -> Tensor:
        """How far the reference of a node may lie from what its linear operation gives of those of its inputs, elementwise."""
        if index not in self.residuals:
            node = self.graph.nodes[index]
            assert isinstance(node.operation, LinearOperation)
            inputs = [self.references[source] for source in node.inputs]
            self.residuals[index] = residual(node.operation, inputs, self.references[index])
        return self.residuals[index]

    def _casting_loss(self, node: int) -> Tensor:
        return casting_loss(self._reach(node), self.dtype)

    def _adding_loss(self, node: int) -> Tensor | None:
        """What adding up the rows that several readers ask of a node may cost."""
        more = len(self.graph.readers[node]) - 1
        return more * self._casting_loss(node) if more > 0 else None

    def _linear_loss(self, index: int) -> Tensor:
        """What rounding may cost for a coefficient of one of a linear node: in its operation, in adding up what its readers ask
        of it, and in nodes before it that it pays for."""
        if index not in self.losses:
            node = self.graph.nodes[index]
            assert isinstance(node.operation, LinearOperation)
            shapes = [self.graph.nodes[source].shape for source in node.inputs]
            loss = linear_loss(node.operation, self.widths[index], shapes, node.shape, self.dtype)
            loss = loss + self.residual(index)
            added = self._adding_loss(index)
            loss = loss if added is None else loss + added
            if node.operation.multiples is not None:
                for source, factor in zip(node.inputs, node.operation.multiples, strict=True):
                    if self._paid_later(source):
                        loss = loss + abs(factor) * self._linear_loss(source)
            self.losses[index] = loss
        return self.losses[index]

    def _paid_later(self, index: int) -> bool:
        """Whether the gap of operations that come later pays for the rounding of a linear one: of elementwise operations that
        read it, themselves or through sums."""
        nodes, readers = self.graph.nodes, self.graph.readers[index]
        if not isinstance(self.operations[index], LinearOperation) or not readers:
            return False
        for reader in readers:
            operation = self.operations[reader]
            if isinstance(operation, Elementwise):
                continue
            alike = all(nodes[source].shape == nodes[reader].shape for source in nodes[reader].inputs)
            summed_up = isinstance(operation, LinearOperation) and operation.multiples is not None
            if not (summed_up and alike and self._paid_later(reader)):
                return False
        return True

    def _passage(self, index: int, operation: Elementwise) -> Passage:
        """How rows go back through an elementwise operation, in their precision."""
        if index not in self.passages:
            source = self.graph.nodes[index].inputs[0]
            lines = operation.lines(*self.boxes[source])
            passage = Passage.about(lines, self.references[source], self.references[index])
            self.passages[index] = passage.widened(self._passage_loss(index, operation)).to(self.dtype)
        return self.passages[index]

    def _passage_loss(self, index: int, operation: Elementwise) -> Tensor:
        """What its gap pays for."""
        source = self.graph.nodes[index].inputs[0]
        before = self._linear_loss(source) if self._paid_later(source) else None
        adding = self._adding_loss(index)
        losses = [passing_loss(self._reach(source), before, self.dtype), *([] if adding is None else [adding])]
        points = self.references[source], self.references[index]
        return elementwise_loss(operation, self.boxes[source], *points, losses, self.dtype)


def outward_sum(one: Tensor, two: Tensor) -> Tensor:
    """one + two, rounded down."""
    return one + two - 2 * unit_roundoff(torch.float64) * (one.abs() + two.abs())


def _twice(constant: Tensor) -> Tensor:
    """Constants of rows, (N, R) or the same for all, for the rows and for their negatives."""
    return torch.cat([constant, constant], 1) if constant.ndim and constant.shape[1] > 1 else constant
