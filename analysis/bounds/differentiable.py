"""Bounds of logits that training differentiates with respect to the network's parameters.

They are computed in the precision of the parameters and not widened: training steers by them, and whatever is claimed of the
trained network is computed by `bound`. A network is exported and compared with its graph once; the parameters of the
moment are bound to it at every call.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from certood.analysis.bounds.ball import Bounds
from certood.analysis.bounds.capturing import Captured
from certood.analysis.bounds.exporting import export
from certood.analysis.bounds.training_bounds import crown_ibp_bounds, interval_bounds, interval_boxes
from certood.analysis.bounds.witness import check
from certood.errors import CannotCertify, CertoodError

METHODS = {"interval": interval_bounds, "crown-ibp": crown_ibp_bounds}


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


def check_differentiable(captured: Captured) -> None:
    """Raise CannotCertify that names an operation, and its line, through whose bounds no gradient passes."""
    exported = captured.exported
    parameters = {
        name: value.detach().clone().requires_grad_()
        for name, value in exported.constants.items()
        if value.is_floating_point()
    }
    with torch.enable_grad():
        graph = captured.bind(parameters)
        device = next((value.device for value in parameters.values()), torch.device("cpu"))
        images = torch.full((1, *exported.shape), 0.5, dtype=graph.dtype, device=device).requires_grad_()
        boxes = interval_boxes(graph, images - 0.1, images + 0.1)
    for index, node in enumerate(graph.nodes[1:], start=1):
        if not all(end.requires_grad for end in boxes[index]):
            raise CannotCertify(
                f"no gradient passes through the bounds of {node.name}; it stands at {node.source or 'an unknown place'}. "
                "Certified training needs other operations there"
            )
