"""Interval and CROWN-IBP bounds of a graph's logits as plain functions of its parameters, for training.

In the precision of the parameters, and not widened.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.operations.base import Interval, row_product
from certood.errors import CannotCertify

Boxes = Mapping[int, Interval]


def interval_boxes(graph: Graph, lower: Tensor, upper: Tensor) -> Boxes:
    """The box of every node for images between `lower` and `upper` (N, C, H, W), by intervals; differentiable."""
    boxes: dict[int, Interval] = {0: (lower, upper)}
    for index, node in enumerate(graph.nodes[1:], start=1):
        boxes[index] = node.operation.training_interval([boxes[source] for source in node.inputs])
    return boxes


def interval_bounds(graph: Graph, images: Tensor, eps: float, norm: float = math.inf) -> Interval:
    """Bounds (N, K) of the logits by intervals (Gowal et al., ICCV 2019); differentiable."""
    return interval_boxes(graph, *_box(images, eps))[len(graph.nodes) - 1]


def crown_ibp_bounds(graph: Graph, images: Tensor, eps: float, norm: float = math.inf) -> Interval:
    """Bounds (N, K) of the logits by linear functions of the image over boxes by intervals; differentiable.

    Rows A of a node, 2K an image, mean A·(y − y₀) with the value y₀ at the centre. They go back from the logits to the image,
    where their least value over the ball is known.
    """
    last = len(graph.nodes) - 1
    boxes, values = interval_boxes(graph, *_box(images, eps)), graph.values(images)
    unit = torch.eye(graph.outputs, dtype=images.dtype, device=images.device)
    rows = {last: torch.cat([unit, -unit]).expand(len(images), -1, -1)}
    constant = images.new_zeros(())
    for index in range(last, 0, -1):
        if index in rows:
            node = graph.nodes[index]
            shapes = [graph.nodes[source].shape for source in node.inputs]
            known = [boxes[source] for source in node.inputs], [values[source] for source in node.inputs]
            try:
                parts, added = node.operation.lower_rows(rows.pop(index), shapes, *known, values[index])
            except CannotCertify as error:
                raise CannotCertify(
                    f"{node.name} has no linear bounds; it stands at {node.source or 'an unknown place'}. Use intervals there"
                ) from error
            constant = constant + added
            for source, part in zip(node.inputs, parts, strict=True):
                rows[source] = rows[source] + part if source in rows else part
    change = (_least(rows[0], images, *boxes[0], eps, norm) + constant).unflatten(1, (2, -1))
    lower, upper = values[last] + change[:, 0], values[last] - change[:, 1]
    return torch.maximum(lower, boxes[last][0]), torch.minimum(upper, boxes[last][1])


def _box(images: Tensor, eps: float) -> Interval:
    return (images - eps).clamp_min(0), (images + eps).clamp_max(1)


def _least(rows: Tensor, images: Tensor, lower: Tensor, upper: Tensor, eps: float, norm: float) -> Tensor:
    """The least value (N, R) of rows·(x − centre) over the ball: that over its box, or by the dual norm where that is larger."""
    box = row_product(rows.clamp_min(0), lower - images) + row_product(rows.clamp_max(0), upper - images)
    if norm == math.inf:
        return box
    flat = rows.flatten(2)
    dual = flat.norm(dim=2) if norm == 2 else flat.abs().amax(2)
    return torch.maximum(box, -eps * dual)
