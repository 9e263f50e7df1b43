"""CROWN: linear bounds of rows of a node, carried back through the graph to the image.

Zhang et al., NeurIPS 2018 (arXiv 1811.00866); Xu et al., NeurIPS 2020 (arXiv 2002.12920). In float64 or float32, with what
rounding may cost subtracted (`rounding`).
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from certood.analysis.bounds.linear.choices import Choices
from certood.analysis.bounds.linear.losses import RoundingLosses
from certood.analysis.bounds.linear.nodes import NodeBounds
from certood.analysis.bounds.linear.relaxing import (
    CentredRelaxation,
    CompactLayer,
    relaxed,
    relaxed_and_multiplied,
    relaxed_each,
)
from certood.analysis.bounds.linear.rows import dense, gathered, signed, summed
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.memory import COPIES
from certood.analysis.bounds.operations.base import (
    Elementwise,
    JointRelaxation,
    LinearOperation,
    Operation,
    Rows,
)
from certood.analysis.bounds.operations.flattening import totals
from certood.analysis.bounds.operations.precision import outward_sum, unit_roundoff
from certood.errors import CannotCertify

# So many rows are worth a matrix of only those lines that count.
MANY_ROWS = 32

# Rows of every input of a node, and what the step adds to the constants (N, R), or None for nothing.
Step = tuple[Sequence[Rows], Tensor | None]


class BackwardPass:
    """Carries rows of the nodes of a graph back to the image, in one precision.

    Relaxations of elementwise nodes and losses of rounding are computed when they are first asked for and kept: the boxes that
    they depend on are final once something after them is bounded. Those of the pass `before`, of looser boxes, serve for nodes
    whose input has the same box. `max_memory` is in bytes.
    """

    def __init__(
        self,
        nodes: NodeBounds,
        dtype: torch.dtype,
        max_memory: float,
        before: "BackwardPass | None" = None,
        losses: RoundingLosses | None = None,
    ) -> None:
        self.nodes, self.dtype, self.max_memory = nodes, dtype, max_memory
        self._before = before if before is not None and before.dtype == dtype else None
        self.losses = losses or RoundingLosses(nodes, dtype)
        self._relaxations: dict[int, CentredRelaxation] = {}
        self._compact: dict[int, list[CompactLayer]] = {}

    @cached_property
    def operations(self) -> Sequence[Operation]:
        """The operations of the graph in the precision of the rows."""
        if self.dtype == torch.float32:
            return self.nodes.graph.rounded
        return [node.operation for node in self.nodes.graph.nodes]

    def to_image(
        self, node: int, rows: Rows, *, both: bool = False, choices: Choices | None = None
    ) -> tuple[Rows, Tensor]:
        """Rows of the image, and constants (N, R) in float64, that bound rows·(y − y₀) of a node from below.

        y₀ is the reference of the node; the rows found are of the difference from the centre of the ball. With `both`, rows
        stand for their negatives too, (N, 2R), until the first operation that is not linear.
        """
        graph = self.nodes.graph
        pending: dict[int, Rows] = {node: rows.to(self.dtype)}
        constant = torch.zeros((), dtype=torch.float64, device=self.nodes.references[0].device)
        if self.dtype != torch.float64:
            constant = constant - self.losses.of_cast(node, rows)
        # All that is added up, by magnitude: what the sums may be rounded by.
        total, steps = constant.abs(), 1
        underflows: list[Tensor] = []
        for index in range(node, 0, -1):
            if index not in pending:
                continue
            own, sources = pending.pop(index), graph.nodes[index].inputs
            operation = self.operations[index]
            if isinstance(operation, LinearOperation):
                parts, added = self._linear_step(index, operation, own, started=index == node)
            else:
                if both:
                    pending = {place: signed(part) for place, part in pending.items()}
                    constant, total = _twice(constant), _twice(total)
                matrix = self._matrix_before(index, own) if choices is None else None
                if matrix is not None:
                    parts, added = self._fused_step(index, matrix, own, both=both)
                    underflows.append(self.losses.underflow(sources[0]))
                    sources = graph.nodes[sources[0]].inputs
                else:
                    parts, added = self._curved_step(index, operation, own, choices, both=both)
                both = False
            underflows.append(self.losses.underflow(index))
            if added is not None:
                constant, total, steps = constant + added, total + added.abs(), steps + 2
            for source, part in zip(sources, parts, strict=True):
                if source not in pending:
                    pending[source] = part
                    continue
                pending[source] = summed(pending[source], part)
                # Elementwise operations, and what they cover, count the sum of what their readers ask among their losses.
                if not self.losses.in_relaxations(source) and not isinstance(self.operations[source], Elementwise):
                    lost = self.losses.of_cast(source, pending[source])
                    constant, total, steps = constant - lost, total + lost, steps + 2
        lost = torch.stack(underflows).sum(0) if underflows else constant.new_zeros(())
        constant, total, steps = constant - lost, total + lost, steps + len(underflows) + 2
        constant = torch.sub(constant, total, alpha=2 * steps * unit_roundoff(torch.float64))
        return (signed(pending[0]), _twice(constant)) if both else (pending[0], constant)

    def _linear_step(self, index: int, operation: LinearOperation, own: Rows, *, started: bool) -> Step:
        """A step through a linear operation, exact but for rounding; `started` where these are the rows that were asked for."""
        parts = operation.transpose_rows(own, self.nodes.input_shapes(index))
        if self.losses.in_relaxations(index) and not started:
            return parts, None
        return parts, -self.losses.of_linear_step(index, own)

    def _curved_step(self, index: int, operation: Operation, own: Rows, choices: Choices | None, *, both: bool) -> Step:
        """A step through a relaxation; with `both` for rows of either sign."""
        if isinstance(operation, JointRelaxation):
            return self._joint_step(index, operation, signed(own) if both else own)
        if not isinstance(operation, Elementwise):
            raise CannotCertify(f"{type(operation).__name__} has no linear bounds")
        if choices is not None:
            return self._chosen_step(index, operation, own, choices)
        before, added = relaxed(own, self._relaxation(index, operation), both=both)
        return [before], added.to(torch.float64)

    def _joint_step(self, index: int, operation: JointRelaxation, own: Rows) -> Step:
        """A step through an operation that bounds whole rows at once, in float64."""
        node, references = self.nodes.graph.nodes[index], self.nodes.references
        exact_rows = dense(own).to(torch.float64)
        boxes = [self.nodes.boxes[source] for source in node.inputs]
        exact, added = operation.transpose_lower(exact_rows, boxes, self.nodes.input_shapes(index))
        added = added - totals(exact_rows * references[index][:, None])
        size = totals(exact_rows.abs() * references[index].abs()[:, None])
        for source, part in zip(node.inputs, exact, strict=True):
            added = added + totals(part * references[source][:, None])
            size = size + totals(part.abs() * references[source].abs()[:, None])
            added = added - self.losses.of_cast(source, part)
        most = max(references[place].shape[1:].numel() for place in (index, *node.inputs))
        added = added - 2 * (most + 8) * unit_roundoff(torch.float64) * size
        return [part.to(self.dtype) for part in exact], added

    def _chosen_step(self, index: int, operation: Elementwise, own: Rows, choices: Choices) -> Step:
        """A step through an elementwise operation, with what is chosen of it."""
        source = self.nodes.graph.nodes[index].inputs[0]
        if operation.adjustable:
            before, added = self._chosen_lines(index, operation, own, choices)
        else:
            before, added = relaxed(own, self._relaxation(index, operation))
        added = added.to(torch.float64)
        if choices.reached is not None:
            choices.reached[index] = dense(own).detach()
        for multiple, place in choices.subtracted.get(index, ()):
            # Whatever the multiple is rounded to is a multiple as well.
            rounded = multiple.to(self.dtype)
            before = summed(before, -rounded)
            shift = rounded.to(torch.float64) * (self.nodes.references[source] - place)[:, None]
            added = added + outward_sum(-totals(shift), -self.losses.of_subtracted(source, rounded, shift, before))
        return [before], added

    def _chosen_lines(self, index: int, operation: Elementwise, own: Rows, choices: Choices) -> tuple[Rows, Tensor]:
        """Rows of the input of an operation whose lower lines are chosen, and constants."""
        source = self.nodes.graph.nodes[index].inputs[0]
        box, about = self.nodes.boxes[source], (self.nodes.references[source], self.nodes.references[index])
        if index not in choices.planes:
            # The least and the largest choice: all others lie between them.
            ends = about[0].new_tensor([0.0, 1.0]).view(2, *[1] * about[0].ndim)
            lines = operation.lines_at(ends, *box)
            loss = self.losses.elementwise(index, lines, CentredRelaxation.about(lines, *about).offsets)
            planes = *box, *about, loss
            choices.planes[index] = list(planes) if choices.shared else [gathered(own, plane) for plane in planes]
        lower, upper, x, y, loss = choices.planes[index]
        shared = choices.shared
        slope = choices.shared_slope(index, box, self.dtype) if shared else choices.slope(index, own, lower, upper)
        relaxation = CentredRelaxation.about(operation.lines_at(slope, lower, upper), x, y).widened(loss).to(self.dtype)
        return relaxed(own, relaxation) if shared else relaxed_each(own, relaxation)

    def _relaxation(self, index: int, operation: Elementwise) -> CentredRelaxation:
        """The relaxation of an elementwise node, in the precision of the rows."""
        same = self._same_before(index)
        if same is not None:
            return same._relaxation(index, operation)
        if index not in self._relaxations:
            source, references = self.nodes.graph.nodes[index].inputs[0], self.nodes.references
            lines = operation.lines(*self.nodes.boxes[source])
            relaxation = CentredRelaxation.about(lines, references[source], references[index])
            loss = self.losses.elementwise(index, lines, relaxation.offsets)
            self._relaxations[index] = relaxation.widened(loss).to(self.dtype)
        return self._relaxations[index]

    def _same_before(self, index: int) -> "BackwardPass | None":
        """The pass before, where it has the same box of what an elementwise node reads, and so the same relaxation."""
        if self._before is None:
            return None
        (source,) = self.nodes.graph.nodes[index].inputs
        return self._before if self._before.nodes.boxes[source] is self.nodes.boxes[source] else None

    def _matrix_before(self, index: int, rows: Rows) -> Tensor | None:
        """The matrix before an elementwise operation that alone reads it, where many rows go back: through both at once."""
        if isinstance(rows, Windows) or rows.ndim != 3 or rows.shape[1] < MANY_ROWS:
            return None
        if not isinstance(self.operations[index], Elementwise):
            return None
        (source,) = self.nodes.graph.nodes[index].inputs
        matrix = self.operations[source].matrix
        if matrix is None or self.nodes.graph.readers[source] != [index]:
            return None
        size = len(rows) * matrix.numel() * self.dtype.itemsize
        return matrix if COPIES * size <= self.max_memory else None

    def _fused_step(self, index: int, matrix: Tensor, own: Rows, *, both: bool) -> Step:
        """Rows of what a matrix reads, from rows of the elementwise operation after it, whose gap covers rounding in both."""
        assert isinstance(own, Tensor)
        found, added = relaxed_and_multiplied(own, self._compact_layers(index, matrix), both=both)
        return [found], added.to(torch.float64)

    def _compact_layers(self, index: int, matrix: Tensor) -> Sequence[CompactLayer]:
        """An elementwise node and the matrix before it, image by image."""
        same = self._same_before(index)
        if same is not None:
            return same._compact_layers(index, matrix)
        if index not in self._compact:
            operation = self.operations[index]
            assert isinstance(operation, Elementwise)
            self._compact[index] = CompactLayer.of_images(self._relaxation(index, operation), matrix)
        return self._compact[index]


def _twice(constant: Tensor) -> Tensor:
    """Constants of rows, (N, R) or the same for all, for the rows and for their negatives."""
    return torch.cat([constant, constant], 1) if constant.ndim and constant.shape[1] > 1 else constant
