"""What is known of every node of a graph over a ball: its value at the centre, and a box."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Region
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.operations.base import Interval, LinearOperation
from certood.analysis.bounds.operations.flattening import flat, flat_rows
from certood.analysis.bounds.operations.precision import unit_roundoff


@dataclass
class NodeBounds:
    """Boxes of the nodes of a graph over a ball, and their references: the values at the centre of the ball.

    Linear bounds are of differences from the references, `centre_values` where they are known already. `widths` are those of
    the interval of every node, before linear bounds tightened its box. `residuals` are kept, as they depend on references only.
    """

    graph: Graph
    ball: Region
    centre_values: Mapping[int, Tensor] | None = None
    boxes: dict[int, Interval] = field(default_factory=dict)
    widths: dict[int, Tensor] = field(default_factory=dict)
    residuals: dict[int, Tensor] = field(default_factory=dict)
    _reaches: dict[int, tuple[Interval, Tensor]] = field(default_factory=dict)

    @cached_property
    def references(self) -> Mapping[int, Tensor]:
        """The values (N, *shape) of every node at the centre of the ball."""
        with torch.no_grad():
            return self.centre_values or self.graph.values(self.ball.centre)

    def input_shapes(self, index: int) -> list[torch.Size]:
        """The shapes of what a node reads, of one sample."""
        return [self.graph.nodes[source].shape for source in self.graph.nodes[index].inputs]

    def reach(self, index: int) -> Tensor:
        """How far a node may lie from its reference (N, *shape), elementwise."""
        box = self.boxes[index]
        if index not in self._reaches or self._reaches[index][0] is not box:
            (lower, upper), middle = box, self.references[index]
            self._reaches[index] = box, torch.maximum(upper - middle, middle - lower)
        return self._reaches[index][1]

    def residual(self, index: int) -> Tensor:
        """How far the reference of a node may lie from what its linear operation gives of those of its inputs, elementwise."""
        if index not in self.residuals:
            node = self.graph.nodes[index]
            assert isinstance(node.operation, LinearOperation)
            inputs = [self.references[source] for source in node.inputs]
            self.residuals[index] = node.operation.residual(inputs, self.references[index])
        return self.residuals[index]

    def at_reference(self, index: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The value (N, R) of rows (N, R, *shape) at the reference of a node, and what it may be rounded by."""
        own, point = flat_rows(rows.to(torch.float64)), flat(self.references[index])[..., None]
        share = 2 * (own.shape[2] + 8) * unit_roundoff(torch.float64)
        return (own @ point)[..., 0], share * (own.abs() @ point.abs())[..., 0]
