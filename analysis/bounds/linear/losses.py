"""What rounding may cost the linear bounds of a graph, node by node (formulas: `rounding`)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from certood.analysis.bounds.linear.nodes import NodeBounds
from certood.analysis.bounds.linear.rounding import (
    EXTRA,
    casting_loss,
    elementwise_loss,
    input_loss,
    linear_loss,
)
from certood.analysis.bounds.linear.rows import magnitude
from certood.analysis.bounds.operations.base import Elementwise, LinearOperation, Rows
from certood.analysis.bounds.operations.flattening import flat, totals
from certood.analysis.bounds.operations.precision import least_normal, unit_roundoff
from certood.analysis.bounds.operations.relaxations import Relaxation


class RoundingLosses:
    """Losses e (N, *shape) of the nodes of a graph: a step back from a node changes a bound of rows A by at most |A|·e.

    The boxes of what a node reads are final when its loss is asked for, so that every loss is computed once. The loss of a
    linear node is part of the relaxations of the elementwise operations that read it, where there are such operations only
    (`in_relaxations`): the relaxations cover it then, and rows that arrive at the node itself cost no further pass.
    """

    def __init__(self, nodes: NodeBounds, dtype: torch.dtype) -> None:
        self.nodes, self.dtype = nodes, dtype
        self._linear: dict[int, Tensor] = {}
        self._underflow: dict[int, Tensor] = {}

    def chosen(self, images: Tensor, nodes: NodeBounds) -> "RoundingLosses":
        """Losses over parts of the balls of some images, `nodes`: those of linear nodes are no larger than over the whole."""
        found = RoundingLosses(nodes, self.dtype)
        for index, node in enumerate(self.nodes.graph.nodes[1:], start=1):
            found._underflow[index] = self.underflow(index)[images]
            if isinstance(node.operation, LinearOperation):
                found._linear[index] = self.linear(index)[images]
        return found

    def of_cast(self, index: int, rows: Rows) -> Tensor:
        """What one rounding of every coefficient (N, R, …) of a node may cost: (N, R) or a zero."""
        return self._lost(rows, partial(self.cast, index))

    def of_linear_step(self, index: int, rows: Rows) -> Tensor:
        """What a step back from a linear node may cost these rows: (N, R) or a zero."""
        return self._lost(rows, partial(self.linear, index))

    @torch.no_grad()
    def of_subtracted(self, index: int, multiple: Tensor, shift: Tensor, rows: Rows) -> Tensor:
        """What subtracting a multiple (N, 1, *shape) of the input z − z₀ of an activation, a node, may cost (N, R).

        `rows` are what is left of the coefficients of z − z₀, and `shift` what was added up for z₀. Relaxations cover the loss of
        a linear node for the coefficients that pass them, and not for these.
        """
        before = self.linear(index) if self.in_relaxations(index) else None
        passing = input_loss(self.nodes.reach(index), before, self.dtype)
        share = 2 * (shift[0, 0].numel() + 8) * unit_roundoff(torch.float64)
        sums = share * totals(shift.abs())
        return magnitude(multiple, passing).to(torch.float64) + sums + self.of_cast(index, rows)

    def _lost(self, rows: Rows, loss: Callable[[], Tensor]) -> Tensor:
        plane = loss()
        if not plane.any():
            return plane.new_zeros(())
        return magnitude(rows, plane + least_normal(self.dtype)).to(torch.float64)

    def underflow(self, index: int) -> Tensor:
        """What coefficients of the inputs of a node that are too small for the precision may cost (N, 1)."""
        if index not in self._underflow:
            node = self.nodes.graph.nodes[index]
            products = node.operation.products(self.nodes.input_shapes(index), node.shape)
            share = 4 * (products + EXTRA) * least_normal(self.dtype)
            first, *others = (flat(self.nodes.reach(source)).sum(1, keepdim=True) for source in node.inputs)
            self._underflow[index] = sum(others, start=first).mul(share).add_(share)
        return self._underflow[index]

    def cast(self, index: int) -> Tensor:
        """The loss of one rounding of every coefficient of a node."""
        return casting_loss(self.nodes.reach(index), self.dtype)

    def sum_of_readers(self, index: int) -> Tensor | None:
        """The loss of adding up the rows that several readers ask of a node; None where there is one reader."""
        more = len(self.nodes.graph.readers[index]) - 1
        return more * self.cast(index) if more > 0 else None

    def linear(self, index: int) -> Tensor:
        """The loss of a linear node: of its operation, of adding up what its readers ask of it, of its reference, and of the
        nodes that it sums up, where relaxations after it cover those."""
        if index not in self._linear:
            node = self.nodes.graph.nodes[index]
            assert isinstance(node.operation, LinearOperation)
            shapes = self.nodes.input_shapes(index)
            loss = linear_loss(node.operation, self.nodes.widths[index], shapes, node.shape, self.dtype)
            loss = loss + self.nodes.residual(index)
            added = self.sum_of_readers(index)
            loss = loss if added is None else loss + added
            if node.operation.multiples is not None:
                for source, factor in zip(node.inputs, node.operation.multiples, strict=True):
                    if self.in_relaxations(source):
                        loss = loss + abs(factor) * self.linear(source)
            self._linear[index] = loss
        return self._linear[index]

    def in_relaxations(self, index: int) -> bool:
        """Whether relaxations cover the loss of a linear node: those of elementwise operations that read it, themselves or
        through sums, if nothing else does."""
        nodes, readers = self.nodes.graph.nodes, self.nodes.graph.readers[index]
        if not isinstance(nodes[index].operation, LinearOperation) or not readers:
            return False
        for reader in readers:
            operation = nodes[reader].operation
            if isinstance(operation, Elementwise):
                continue
            alike = all(nodes[source].shape == nodes[reader].shape for source in nodes[reader].inputs)
            if not (operation.multiples is not None and alike and self.in_relaxations(reader)):
                return False
        return True

    def elementwise(self, index: int, lines: Relaxation, offsets: Tensor) -> Tensor:
        """The loss of an elementwise node with these lines, which the gap of its relaxation covers (`elementwise_loss`)."""
        source = self.nodes.graph.nodes[index].inputs[0]
        before = self.linear(source) if self.in_relaxations(source) else None
        adding = self.sum_of_readers(index)
        reach = self.nodes.reach(source)
        losses = [input_loss(reach, before, self.dtype), *([] if adding is None else [adding])]
        points = self.nodes.references[source], self.nodes.references[index]
        return elementwise_loss(lines, offsets, reach, *points, losses, self.dtype)
