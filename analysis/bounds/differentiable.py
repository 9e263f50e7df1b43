"""Bounds of logits that training differentiates with respect to the network's parameters.

They are computed in the precision of the parameters and not widened: training steers by them, and whatever is claimed of the
trained network is computed by `bound`. A network is exported and compared with its graph once; the parameters of the
moment are bound to it at every call.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from certood.analysis.bounds.ball import Bounds
from certood.analysis.bounds.capturing import Captured
from certood.analysis.bounds.exporting import export
from certood.analysis.bounds.graph import Graph, Node
from certood.analysis.bounds.operations.base import Elementwise, Interval, JointRelaxation, LinearOperation
from certood.analysis.bounds.witness import check
from certood.errors import CannotCertify, CertoodError

Boxes = Mapping[int, Interval]


class DifferentiableBounds:
    """Bounds of a network's logits over balls, differentiable with respect to its parameters.

    >>> bounds = DifferentiableBounds(network, images[:1], method="crown-ibp")
    >>> bounds(images, 0.1).lower.sum().backward()

    `method` is "interval" or "crown-ibp": linear bounds of the logits over boxes by intervals (Zhang et al., ICLR 2020). Raises
    CertoodError for another method, UnsupportedOperation that names an operation without bounds and its line, and
    CannotCertify where the graph does not compute what the network does or an operation passes no gradients.
    """

    def __init__(self, model: nn.Module, example: Tensor, method: str = "interval") -> None:
        if method not in METHODS:
            raise CertoodError(f"unknown method {method!r} of differentiable bounds; expected {' or '.join(METHODS)}")
        self.model, self.method = model, method
        self._captured = Captured(export(model, example))
        with torch.no_grad():
            check(self._captured.exported, self._captured.bind(), self._captured.translated())
        check_differentiable(self._captured)

    def __call__(self, images: Tensor, eps: float, norm: float = math.inf) -> Bounds:
        """Bounds (N, K) over B_p(x, ε) ∩ [0, 1]^d of images (N, C, H, W) in [0, 1]; ε in pixels, p = `norm` (inf, 2 or 1).

        Intervals see the box around the ball, which for p = 2 and 1 is much larger. Raises CannotCertify for batch
        normalisation in train mode.
        """
        require_fixed_statistics(self.model)
        parameters = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        kept = self._captured.exported.constants
        graph = self._captured.bind({name: value for name, value in parameters.items() if name in kept})
        lower, upper = METHODS[self.method](graph, images, eps, norm)
        return Bounds(lower, upper, self.method)


def require_fixed_statistics(model: nn.Module) -> None:
    """Raise CannotCertify where batch normalisation is in train mode: an image would move the statistics of all others, so
    that no ball of one image has bounds."""
    for name, part in model.named_modules():
        if isinstance(part, _BatchNorm) and part.training:
            raise CannotCertify(
                f"{name} is a batch normalisation in train mode, whose statistics depend on the other images of the batch: "
                "bounds need fixed statistics (model.fixed_statistics = true, best after pre-training) or no batch normalisation"
            )


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
            parts, added = _passed_back(graph, node, rows.pop(index), index, boxes, values)
            constant = constant + added
            for source, part in zip(node.inputs, parts, strict=True):
                rows[source] = rows[source] + part if source in rows else part
    change = (_least(rows[0], images, *boxes[0], eps, norm) + constant).unflatten(1, (2, -1))
    lower, upper = values[last] + change[:, 0], values[last] - change[:, 1]
    return torch.maximum(lower, boxes[last][0]), torch.minimum(upper, boxes[last][1])


METHODS = {"interval": interval_bounds, "crown-ibp": crown_ibp_bounds}


def check_differentiable(captured: Captured) -> None:
    """Raise CannotCertify that names an operation, and its line, through whose bounds no gradient passes."""
    exported = captured.exported
    parameters = {
        name: value.detach().clone().requires_grad_()
        for name, value in exported.constants.items()
        if value.is_floating_point()
    }
    graph = captured.bind(parameters)
    images = torch.full((1, *exported.shape), 0.5, dtype=graph.dtype).requires_grad_()
    boxes = interval_boxes(graph, images - 0.1, images + 0.1)
    for index, node in enumerate(graph.nodes[1:], start=1):
        if not all(end.requires_grad for end in boxes[index]):
            raise CannotCertify(
                f"no gradient passes through the bounds of {node.name}; it stands at {node.source or 'an unknown place'}. "
                "Certified training needs other operations there"
            )


def _box(images: Tensor, eps: float) -> Interval:
    return (images - eps).clamp_min(0), (images + eps).clamp_max(1)


def _passed_back(
    graph: Graph, node: Node, rows: Tensor, index: int, boxes: Boxes, values: Mapping[int, Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Rows of the inputs of a node, and constants (N, R), that bound its rows from below."""
    shapes = [graph.nodes[source].shape for source in node.inputs]
    operation = node.operation
    if isinstance(operation, LinearOperation):
        return operation.transpose(rows, shapes), rows.new_zeros(())
    if isinstance(operation, Elementwise):
        (source,) = node.inputs
        lines = operation.lines(*boxes[source])
        positive, negative = rows.clamp_min(0), rows.clamp_max(0)
        below = lines.lower_slope * values[source] + lines.lower_shift - values[index]
        above = lines.upper_slope * values[source] + lines.upper_shift - values[index]
        back = positive * lines.lower_slope[:, None] + negative * lines.upper_slope[:, None]
        return [back], _product(positive, below) + _product(negative, above)
    if isinstance(operation, JointRelaxation):
        parts, added = operation.transpose_lower(rows, [boxes[source] for source in node.inputs], shapes)
        added = added - _product(rows, values[index])
        for source, part in zip(node.inputs, parts, strict=True):
            added = added + _product(part, values[source])
        return parts, added
    raise CannotCertify(
        f"{node.name} has no linear bounds that can be differentiated; it stands at {node.source or 'an unknown place'}. "
        "Use certified.method = 'interval'"
    )


def _product(rows: Tensor, plane: Tensor) -> Tensor:
    """Σ row·plane (N, R) of rows (N, R, *shape) and a plane (N, *shape)."""
    return (rows.flatten(2) @ plane.flatten(1)[..., None])[..., 0]


def _least(rows: Tensor, images: Tensor, lower: Tensor, upper: Tensor, eps: float, norm: float) -> Tensor:
    """The least value (N, R) of rows·(x − centre) over the ball: that over its box, or by the dual norm where that is larger."""
    box = _product(rows.clamp_min(0), lower - images) + _product(rows.clamp_max(0), upper - images)
    if norm == math.inf:
        return box
    flat = rows.flatten(2)
    dual = flat.norm(dim=2) if norm == 2 else flat.abs().amax(2)
    return torch.maximum(box, -eps * dual)
