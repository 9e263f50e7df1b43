"""Affine chains of a graph become one operation each: batch normalisation, scaling and shifting after a linear layer."""

from collections import Counter
from dataclasses import replace

from certood.analysis.bounds.graph import Graph, Node


def folded(graph: Graph) -> Graph:
    """The same function with fewer nodes: whatever is affine is folded into the linear operation that it alone reads."""
    readers = Counter(source for node in graph.nodes for source in node.inputs)
    nodes: list[Node] = []
    place: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        sources = tuple(place[source] for source in node.inputs)
        joined, affine = None, node.operation.affine
        if affine is not None and readers[node.inputs[0]] == 1 and nodes[sources[0]].shape == node.shape:
            joined = nodes[sources[0]].operation.followed_by(*affine, node.shape)
        if joined is None:
            place[index] = len(nodes)
            nodes.append(replace(node, inputs=sources))
        else:
            place[index] = sources[0]
            nodes[sources[0]] = replace(nodes[sources[0]], operation=joined)
    return replace(graph, nodes=tuple(nodes))
