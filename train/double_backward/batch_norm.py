"""Batch normalisation in train mode whose double backward is in closed form.

With m numbers a channel, x̂ = (x − μ)·r, r = 1/√(σ² + ε), and P(h) = h − mean(h) − x̂·mean(h·x̂), the gradient of the input is
d = w·r·P(g) for the gradient g of the output (Ioffe & Szegedy, ICML 2015). For any u the gradients of φ = Σ u·d are

    ∂φ/∂g = w·r·P(u) = e,   ∂φ/∂w = r·T,   ∂φ/∂x = −r·(b·d + a·e) − w·r²·x̂·T/m,

a = mean(g·x̂), b = mean(u·x̂), T = Σ u·P(g) = Σ u·g − m·(mean(u)·mean(g) + a·b). PyTorch's kernel of the first gradient gives e,
all of these means, and d: one more product is summed, and one plane is added up. Its own formula takes over thirty passes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from certood.train.double_backward.replaceable import replaceable

# Those whose kernel keeps 1/√(σ² + ε) of the forward, as the formulas take it.
DEVICES = ("cpu", "cuda")

# Numbers of a plane that are combined at a time.
CACHED = 2**18


def normalise(
    input: Tensor,  # noqa: A002 - PyTorch's names, by which it may be called
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Batch normalisation, or None where it is PyTorch's affair.

    That is where nothing is to be differentiated, with statistics that are given, without weights, where a channel has one
    number or none, and on other devices.
    """
    if not training or weight is None or bias is None or input.device.type not in DEVICES:
        return None
    if not replaceable(input, weight, bias) or input.ndim < 2 or input.numel() <= input.shape[1]:
        return None
    found: Tensor = _Normalise.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return found


class _Normalise(Function):
    """The value, by PyTorch's kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        share: float,
        eps: float,
    ) -> Tensor:
        y: Tensor
        y, centre, scale = torch.native_batch_norm(x, weight, bias, mean, variance, True, share, eps)
        ctx.save_for_backward(x, weight, centre, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = _Backward.apply(gradients[0], *ctx.saved_tensors, ctx.eps)
        return (*found, None, None, None, None)


class _Backward(Function):
    """Gradients of input, weight and bias, by PyTorch's kernel, and the gradients of these."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, centre: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient = _as_laid_out(gradient, x)
        found = _first_gradients(gradient, x, weight, centre, scale, eps)
        ctx.save_for_backward(gradient, x, weight, centre, scale, *found)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("batch normalisation is differentiated twice, and cannot be a third time")
        gradient, x, weight, centre, scale, d, sum_gx, sum_g = ctx.saved_tensors
        u, of_weight, of_bias = gradients
        u = None if u is None else _as_laid_out(u, x)
        shape = (1, -1, *[1] * (x.ndim - 2))
        numbers = x.numel() // x.shape[1]
        to_g = to_x = to_w = None
        if u is not None:
            to_g, sum_ux, sum_u = _first_gradients(u, x, weight, centre, scale, ctx.eps)
            total = _channel_products(gradient, u, scale) - (sum_u * sum_g + sum_ux * sum_gx) / numbers
            to_w = (scale * total).to(weight.dtype)
            of_x = -weight * scale.pow(3) * total / numbers
            to_x = _combined(
                [(x, of_x), (d, -scale * sum_ux / numbers), (to_g, -scale * sum_gx / numbers)], -of_x * centre
            )
        if of_weight is not None:
            normed = (x - centre.view(shape)) * (of_weight * scale).view(shape)
            to_g = normed if to_g is None else to_g + normed
            moved = _first_gradients(gradient, x, of_weight, centre, scale, ctx.eps)[0]
            to_x = moved if to_x is None else to_x + moved
        if of_bias is not None:
            own = of_bias.view(shape).expand_as(x)
            to_g = own if to_g is None else to_g + own
        return (
            None if to_g is None else to_g.to(gradient.dtype),
            None if to_x is None else to_x.to(x.dtype),
            to_w,
            None,
            None,
            None,
        )


def _as_laid_out(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient in the memory layout of x: where the two differ, as after a slice of channels, every kernel here is slow."""
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return gradient.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _first_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, centre: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """w·r·P(g), Σ g·x̂ and Σ g."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, None, None, centre, scale, True, eps, [True, True, True]
    )
    return found


def _channel_products(gradient: Tensor, u: Tensor, scale: Tensor) -> Tensor:
    """Σ g·u a channel: what PyTorch's kernel of the weight's gradient gives where the mean is 0 and the scale 1, in one pass."""
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    found: Tensor = torch.ops.aten.native_batch_norm_backward(
        gradient, u, ones, None, None, zeros, ones, True, 0.0, [False, True, False]
    )[1]
    return found


def _combined(terms: list[tuple[Tensor, Tensor]], offset: Tensor) -> Tensor:
    """Σ plane·coefficient + offset, coefficients by channel, in the precision of these; rounded and laid out as the first plane.

    On a processor a few images at a time, whose planes in that precision stay in its cache.
    """
    first = terms[0][0]
    shape = (1, -1, *[1] * (first.ndim - 2))
    rows = max(CACHED * len(first) // first.numel(), 1) if first.device.type == "cpu" else len(first)
    found = torch.empty_like(first)
    coefficients = [coefficient.view(shape) for _, coefficient in terms]
    for part, *images in zip(found.split(rows), *(plane.split(rows) for plane, _ in terms), strict=True):
        total = offset.view(shape)
        for image, coefficient in zip(images, coefficients, strict=True):
            total = torch.addcmul(total, image.to(total.dtype), coefficient)
        part.copy_(total)
    return found
