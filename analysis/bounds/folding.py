"""Affine chains of a graph become one operation each: batch normalisation, scaling and shifting after a linear layer."""

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from certood.analysis.bounds.graph import Graph, Node
from certood.analysis.bounds.operations.base import ChannelAffine, Linear, Operation
from certood.analysis.bounds.operations.convolution import Convolution


def folded(graph: Graph) -> Graph:
    """The same function with fewer nodes: whatever is affine is folded into the linear operation that it alone reads."""
    readers = Counter(source for node in graph.nodes for source in node.inputs)
    nodes: list[Node] = []
    place: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        sources = tuple(place[source] for source in node.inputs)
        joined = None
        if isinstance(node.operation, ChannelAffine) and readers[node.inputs[0]] == 1:
            before = nodes[sources[0]]
            joined = _joined(before.operation, node.operation, before.shape, node.shape)
        if joined is None:
            place[index] = len(nodes)
            nodes.append(replace(node, inputs=sources))
        else:
            place[index] = sources[0]
            nodes[sources[0]] = replace(nodes[sources[0]], operation=joined)
    return replace(graph, nodes=tuple(nodes))


def _joined(first: Operation, second: ChannelAffine, before: torch.Size, after: torch.Size) -> Operation | None:
    """`second` after `first` as one operation, or None where that is none of ours."""
    if before != after:
        return None
    if isinstance(first, ChannelAffine):
        return ChannelAffine(first.scale * second.scale, first.shift * second.scale + second.shift)
    axis = 0 if isinstance(first, Convolution) else -1
    scale, shift = (_along(part, before, axis) for part in (second.scale, second.shift))
    if scale is None or shift is None:
        return None
    match first:
        case Linear():
            return Linear(first.weight * scale[:, None], first.bias * scale + shift)
        case Convolution():
            weight, bias = first.weight * scale[:, None, None, None], first.bias * scale + shift
            return Convolution(weight, bias, first.stride, first.padding, first.dilation, first.groups)
    return None


def _along(constant: Tensor, shape: torch.Size, axis: int) -> Tensor | None:
    """A constant that broadcasts against `shape` as a vector along one axis, or None where it varies along others."""
    axis %= len(shape)
    full = constant.reshape(*[1] * (len(shape) - constant.ndim), *constant.shape)
    if any(size != 1 for place, size in enumerate(full.shape) if place != axis):
        return None
    return full.flatten().expand(shape[axis])
