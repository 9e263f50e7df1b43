"""The branching points of a ball: where the box of an activation's input may be split, as the columns of one matrix.

Those of a piecewise linear activation are its kinks. One that bends is split at quarters of its box, as GenBaB (Shi et al., TACAS
2025, arXiv 2405.21063) splits at the middle: in narrower boxes its lines are closer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.nodes import NodeBounds
from certood.analysis.bounds.operations.base import Elementwise
from certood.analysis.bounds.operations.flattening import flat

# The node of an activation, and the number of the point among those of a neuron.
Point = tuple[int, int]

SHARES = (0.25, 0.5, 0.75)


def branching_nodes(graph: Graph) -> list[int]:
    """The nodes of a graph whose inputs can be split."""
    return [index for index, node in enumerate(graph.nodes) if isinstance(node.operation, Elementwise)]


def _places(operation: Elementwise, lower: Tensor, upper: Tensor) -> list[Tensor]:
    """Where the inputs of an activation may be split (N, *shape), for boxes of them."""
    if operation.kinks is not None:
        return [torch.full_like(lower, kink) for kink in operation.kinks]
    return [torch.lerp(lower, upper, share) for share in SHARES]


@dataclass(frozen=True)
class Columns:
    """C neurons and points that lie inside the box of the neuron's input, for some image at least; no others have a choice.

    `at` are the places (N, *shape) of every point, and `places` (C,) the columns in the planes of all points, one after
    the other.
    """

    at: Mapping[Point, Tensor]
    places: Tensor

    @staticmethod
    def of(nodes: NodeBounds) -> "Columns":
        """Those of the boxes of a graph."""
        at: dict[Point, Tensor] = {}
        apart = [torch.zeros(0, dtype=torch.bool, device=nodes.references[0].device)]
        for node in branching_nodes(nodes.graph):
            operation = nodes.graph.nodes[node].operation
            assert isinstance(operation, Elementwise)
            lower, upper = nodes.boxes[nodes.graph.nodes[node].inputs[0]]
            for number, place in enumerate(_places(operation, lower, upper)):
                at[node, number] = place
                apart.append(((lower < place) & (upper > place)).any(0).flatten())
        return Columns(at, torch.cat(apart).nonzero().flatten())

    def __len__(self) -> int:
        return len(self.places)

    def planes(self, values: Tensor) -> dict[Point, Tensor]:
        """Values (D, C) as planes (D, *shape) of every point, zero where there is no column."""
        shapes = [place.shape[1:] for place in self.at.values()]
        sizes = [shape.numel() for shape in shapes]
        whole = values.new_zeros(len(values), sum(sizes)).index_copy(1, self.places, values)
        parts = zip(self.at, shapes, whole.split(sizes, 1), strict=True)
        return {point: part.view(-1, *shape) for point, shape, part in parts}

    def gather(self, planes: Mapping[Point, Tensor]) -> Tensor:
        """The columns (D, C) of planes (D, *shape) of every point."""
        return torch.cat([flat(planes[point]) for point in self.at], 1).index_select(1, self.places)
