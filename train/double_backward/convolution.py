"""Convolutions whose double backward is made of convolutions and their gradients.

y = x ∗ w is linear in x and in w. With I(g, w) the gradient of the input and W(g, x) that of the weights, for a gradient g of the
output, any u gives Σ u·I(g, w) = Σ g·(u ∗ w), whose gradients are u ∗ w (of g) and W(g, u) (of w). PyTorch's own double backward
takes W(g, u) for a convolution of the transposed tensors, with a kernel as large as the plane, for which no library has a fast
routine; in bf16, with one thread, that of 1×1 convolutions divides by zero at some batch sizes and ends the process.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from certood.train.double_backward.replaceable import replaceable


class _Settings(NamedTuple):
    """As PyTorch's operators take them; none is transposed."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def value(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x ∗ w."""
        found: Tensor = torch.ops.aten.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, False, [0] * len(self.stride), self.groups
        )
        return found

    def gradients(
        self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """I(g, w), W(g, x) and Σ g, the gradient of a bias: those that are wanted."""
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            [len(weight)],
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0] * len(self.stride),
            self.groups,
            wanted,
        )
        return found


def convolve(
    axes: int,
    input: Tensor,  # noqa: A002 - PyTorch's names, by which it may be called
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """The convolution along so many axes, or None where it is PyTorch's affair.

    That is where nothing is to be differentiated, and for padding by name, one image without an axis of a batch, complex numbers,
    kinds that differ, and subclasses of tensors.
    """
    given = [tensor for tensor in (input, weight, bias) if tensor is not None]
    if isinstance(padding, str) or any(tensor.ndim != axes + 2 for tensor in given[:2]) or not replaceable(*given):
        return None
    settings = _Settings(_each(stride, axes), _each(padding, axes), _each(dilation, axes), groups)
    x, device = input, input.device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        x, weight, bias = _cast(x, kind), _cast(weight, kind), None if bias is None else _cast(bias, kind)
    if len({tensor.dtype for tensor in (x, weight, bias) if tensor is not None}) > 1:
        return None
    y = _OfWeights.apply([x], weight, bias, settings)
    found: Tensor = _OfInput.apply(y, x, weight, settings)
    return found


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (int(value),)
    return values * axes if len(values) == 1 else values


def _cast(tensor: Tensor, kind: torch.dtype) -> Tensor:
    # As autocast does, which leaves float64 alone.
    return tensor if tensor.dtype == torch.float64 else tensor.to(kind)


class _OfWeights(Function):
    """The value, with the gradients of weights and bias alone.

    They are a node of their own, which a pass to the images leaves out: one node for all would compute them there for nothing.
    The input comes in a list, so that no edge of the graph leads to it, and is saved with its history: a gradient of these
    gradients is PyTorch's own.
    """

    @staticmethod
    def forward(ctx: Any, of_input: list[Tensor], weight: Tensor, bias: Tensor | None, settings: _Settings) -> Tensor:
        (x,) = of_input
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        return settings.value(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, of_weight, of_bias = ctx.settings.gradients(gradient, x, weight, (False, *ctx.needs_input_grad[1:3]))
        return None, of_weight, of_bias, None


class _OfInput(Function):
    """The same value, with the gradient of the input added."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, settings: _Settings) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        # It is handed on as it is. As a view of itself it could not be changed in place, which activations do.
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return gradients[0], _InputGradient.apply(gradients[0], x.detach(), weight, ctx.settings), None, None


class _InputGradient(Function):
    """I(g, w), and its gradients; of x its shape alone counts."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, settings: _Settings) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.settings = settings
        return settings.gradients(gradient, x, weight, (True, False, False))[0]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        of_gradient = ctx.settings.value(u, weight) if ctx.needs_input_grad[0] else None
        of_weight = (
            ctx.settings.gradients(gradient, u, weight, (False, True, False))[1] if ctx.needs_input_grad[2] else None
        )
        return of_gradient, None, of_weight, None
