"""The kinks at which parts of a ball can be split, as the columns of one matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.nodes import NodeBounds

# The node of an activation, and where the kink lies.
Kink = tuple[int, float]


def kinks(graph: Graph) -> list[Kink]:
    """The kinks of the piecewise linear activations of a graph."""
    return [(index, place) for index, node in enumerate(graph.nodes) for place in node.operation.kinks or ()]


@dataclass(frozen=True)
class Columns:
    """C neurons with a kink inside the box of their input, for some image at least; all others have no choice.

    `places` (C,) are those in the planes of all kinks, one after the other.
    """

    kinks: Sequence[Kink]
    shapes: Sequence[torch.Size]
    places: Tensor

    @staticmethod
    def of(nodes: NodeBounds) -> "Columns":
        """Those of the boxes of a graph."""
        graph = nodes.graph
        found = kinks(graph)
        shapes = [graph.nodes[node].shape for node, _ in found]
        device = nodes.references[0].device
        apart = [torch.zeros(0, dtype=torch.bool, device=device)]
        for node, place in found:
            lower, upper = nodes.boxes[graph.nodes[node].inputs[0]]
            apart.append(((lower < place) & (upper > place)).any(0).flatten())
        return Columns(found, shapes, torch.cat(apart).nonzero().flatten())

    def __len__(self) -> int:
        return len(self.places)

    def planes(self, values: Tensor) -> dict[Kink, Tensor]:
        """Values (D, C) as planes (D, *shape) of every kink, zero where there is no column."""
        sizes = [shape.numel() for shape in self.shapes]
        whole = values.new_zeros(len(values), sum(sizes)).index_copy(1, self.places, values)
        parts = zip(self.kinks, self.shapes, whole.split(sizes, 1), strict=True)
        return {kink: part.view(-1, *shape) for kink, shape, part in parts}

    def gather(self, planes: Mapping[Kink, Tensor]) -> Tensor:
        """The columns (D, C) of planes (D, *shape) of every kink."""
        return torch.cat([planes[kink].flatten(1) for kink in self.kinks], 1).index_select(1, self.places)
