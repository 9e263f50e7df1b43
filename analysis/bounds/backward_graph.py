"""The backward pass of a graph as a graph of its own: from the gradient with respect to the logits to that of the image.

Every derivative of a nonlinear operation is known to lie in an interval, because its input lies in a box: a gate that
multiplies by an unknown factor of that interval (RecurJac: Zhang et al., AAAI 2019, arXiv 1810.11783; Shi et al., NeurIPS 2022,
arXiv 2210.07394). Boxes and linear bounds then propagate through it as through any other graph.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.graph import Graph, Node
from certood.analysis.bounds.operations.activations import Activation
from certood.analysis.bounds.operations.axis import AxisFunction
from certood.analysis.bounds.operations.base import (
    Elementwise,
    Input,
    Interval,
    LinearOperation,
    Monotone,
    Operation,
    WeightedSum,
    sum_to_shape,
)
from certood.analysis.bounds.operations.pairs import MaxPool, Product
from certood.analysis.bounds.operations.relaxations import Relaxation
from certood.errors import CannotCertify


class Gate(Elementwise):
    """y = d·x for an unknown d in [least, most], elementwise, of shape (N, *shape)."""

    def __init__(self, least: Tensor, most: Tensor) -> None:
        self.least, self.most = least, most

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value for the middle factor."""
        return inputs[0] * (self.least + self.most) / 2

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The extremes of the four products of ends."""
        lower, upper = inputs[0]
        return self._smallest(lower, upper), self._largest(lower, upper)

    def _smallest(self, lower: Tensor, upper: Tensor) -> Tensor:
        corners = lower * self.least, lower * self.most, upper * self.least, upper * self.most
        return torch.stack(corners).amin(0)

    def _largest(self, lower: Tensor, upper: Tensor) -> Tensor:
        return -self._smallest(-upper, -lower)

    def lines(self, lower: Tensor, upper: Tensor) -> Relaxation:
        """The chords of x ↦ max d·x, which is convex, and of x ↦ min d·x, which is concave: the hull of all d·x."""
        top_left, top_right = self._largest(lower, lower), self._largest(upper, upper)
        low_left, low_right = self._smallest(lower, lower), self._smallest(upper, upper)
        width = upper - lower
        safe = torch.where(width > 0, width, torch.ones_like(width))
        upper_slope, lower_slope = (top_right - top_left) / safe, (low_right - low_left) / safe
        # A cotangent without width still has the exact factor as its slope where there is only one.
        settled = self.least == self.most
        upper_slope, lower_slope = (torch.where(settled, self.least, slope) for slope in (upper_slope, lower_slope))
        slack = 8 * torch.finfo(lower.dtype).eps * torch.maximum(top_left.abs(), top_right.abs())
        slack = slack + 8 * torch.finfo(lower.dtype).eps * torch.maximum(low_left.abs(), low_right.abs())
        slack = torch.where(settled, torch.zeros_like(slack), slack)
        # The chord through either end: the wider of both roundings.
        upper_shift = torch.maximum(top_left - upper_slope * lower, top_right - upper_slope * upper)
        lower_shift = torch.minimum(low_left - lower_slope * lower, low_right - lower_slope * upper)
        zero = torch.zeros_like(lower)
        return Relaxation(
            lower_slope,
            torch.where(settled, zero, lower_shift - slack),
            upper_slope,
            torch.where(settled, zero, upper_shift + slack),
        )

    def unsettled(self, box: Interval) -> Tensor:
        """Where the factor is not known and the sign of x is not either."""
        return (self.least < self.most) & (box[0] < 0) & (box[1] > 0)


def backward_graph(graph: Graph, boxes: Mapping[int, Interval]) -> Graph:
    """The graph from gradients (N, K) with respect to the logits to gradients (N, C, H, W) with respect to the image.

    `boxes` bound every node of the graph over the ball. Raises CannotCertify for an operation whose derivative has no
    bounds here.
    """
    last = len(graph.nodes) - 1
    nodes = [Node("gradient of the logits", Input(), (), graph.nodes[last].shape, "")]

    def append(operation: Operation, sources: tuple[int, ...], shape: torch.Size) -> int:
        nodes.append(Node(f"gradient_{len(nodes)}", operation, sources, shape, ""))
        return len(nodes) - 1

    gradients = {last: 0}
    for index in range(last, 0, -1):
        node = graph.nodes[index]
        shapes = [graph.nodes[source].shape for source in node.inputs]
        for source, chain in zip(node.inputs, _chains(node, shapes, boxes), strict=True):
            here = gradients[index]
            for operation, shape in chain:
                here = append(operation, (here,), shape)
            if source in gradients:
                here = append(WeightedSum(1.0, 1.0), (gradients[source], here), graph.nodes[source].shape)
            gradients[source] = here
    return Graph(tuple(nodes))


def _chains(
    node: Node, shapes: Sequence[torch.Size], boxes: Mapping[int, Interval]
) -> Iterator[list[tuple[Operation, torch.Size]]]:
    """For every input of a node the operations that its gradient goes through, each with the shape of its value."""
    operation = node.operation
    if isinstance(operation, LinearOperation):
        for adjoint, shape in zip(operation.adjoints(shapes), shapes, strict=True):
            yield [(adjoint, shape)]
    elif isinstance(operation, Activation):
        yield [(Gate(*operation.slopes(*boxes[node.inputs[0]])), shapes[0])]
    elif isinstance(operation, Product):
        for other, shape in ((1, shapes[0]), (0, shapes[1])):
            factor = tuple(bound.expand(len(bound), *node.shape) for bound in boxes[node.inputs[other]])
            yield [(Gate(factor[0], factor[1]), node.shape), (_summed(shape), shape)]
    elif isinstance(operation, AxisFunction):
        yield _axis_chain(operation, boxes[node.inputs[0]], shapes[0])
    elif isinstance(operation, MaxPool):
        yield _max_pool_chain(operation, boxes[node.inputs[0]], node.shape, shapes[0])
    else:
        raise CannotCertify(f"no bounds of the derivative of {type(operation).__name__} at {node.source or node.name}")


def _summed(shape: torch.Size) -> Monotone:
    """The sum over the axes along which an input of this shape had been broadcast."""
    return Monotone(lambda x: sum_to_shape(x[:, None], shape)[:, 0])


def _axis_chain(function: AxisFunction, box: Interval, shape: torch.Size) -> list[tuple[Operation, torch.Size]]:
    """Every gradient once for every input of its vector, gated by the Jacobian, and summed."""
    least, most = function.jacobian(*(function.vectors(bound) for bound in box))
    spread = least.shape[1:]
    inner = spread[:-2]

    def copies(x: Tensor) -> Tensor:
        return function.coefficients(x, inner, 1)[..., None].expand(-1, *spread)

    def sums(x: Tensor) -> Tensor:
        return function.spread(x.sum(-2), shape)

    return [(Monotone(copies), spread), (Gate(least, most), spread), (Monotone(sums), shape)]


def _max_pool_chain(
    pool: MaxPool, box: Interval, pooled: torch.Size, shape: torch.Size
) -> list[tuple[Operation, torch.Size]]:
    """Spread over the elements of each window, gate by whether one may or must be the largest, gather."""
    possible, certain = pool.winners(box)
    spread = torch.Size((pooled[0], possible.shape[2], *pooled[1:]))

    def windows(x: Tensor) -> Tensor:
        return pool.windows(x, 0.0)

    def gather(x: Tensor) -> Tensor:
        return Monotone(windows).transpose(x[:, None], [shape])[0][:, 0]

    return [
        (Monotone(lambda x: x[:, :, None].expand(-1, *spread)), spread),
        (Gate(certain.double(), possible.double()), spread),
        (Monotone(gather), shape),
    ]
