"""The backward pass of a graph as a graph of its own: from the gradient with respect to the logits to that of the image.

Every derivative of a nonlinear operation is known to lie in an interval, because its input lies in a box: a gate that
multiplies by an unknown factor of that interval (RecurJac: Zhang et al., AAAI 2019, arXiv 1810.11783; Shi et al., NeurIPS 2022,
arXiv 2210.07394). Boxes and linear bounds then propagate through it as through any other graph.
"""

from collections.abc import Mapping

import torch

from certood.analysis.bounds.graph import Graph, Node
from certood.analysis.bounds.operations import Input, Interval, Operation, WeightedSum
from certood.errors import CannotCertify


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
        try:
            chains = node.operation.gradient(shapes, [boxes[source] for source in node.inputs])
        except CannotCertify as error:
            raise CannotCertify(f"{error}; it stands at {node.source or node.name}") from error
        for source, chain in zip(node.inputs, chains, strict=True):
            here = gradients[index]
            for operation, shape in chain:
                here = append(operation, (here,), shape)
            if source in gradients:
                here = append(WeightedSum(1.0, 1.0), (gradients[source], here), graph.nodes[source].shape)
            gradients[source] = here
    return Graph(tuple(nodes))
