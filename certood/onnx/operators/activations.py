"""Activation functions, and functions along an axis that end a network."""

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.onnx.calls import Call, operator


@operator("Relu")
def relu(call: Call) -> Tensor:
    """max(x, 0)."""
    return F.relu(call.tensor(0))


@operator("LeakyRelu")
def leaky_relu(call: Call) -> Tensor:
    """x, and alpha · x below 0."""
    return F.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01))


@operator("PRelu")
def prelu(call: Call) -> Tensor:
    """x, and slope · x below 0, with a slope for all, for each channel, or of any shape that broadcasts."""
    x, slope = call.tensor(0), call.tensor(1)
    per_channel = slope.ndim == x.ndim - 1 or (slope.ndim == x.ndim and slope.shape[0] == 1)
    channels = slope.shape[0 if slope.ndim == x.ndim - 1 else 1] if per_channel else 0
    if slope.numel() == 1 or (per_channel and x.ndim > 1 and slope.numel() == channels == x.shape[1]):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, slope * x, x)


@operator("ThresholdedRelu")
def thresholded_relu(call: Call) -> Tensor:
    """x above alpha, 0 elsewhere."""
    return F.threshold(call.tensor(0), call.attribute("alpha", 1.0), 0.0)


@operator("Elu")
def elu(call: Call) -> Tensor:
    """x, and alpha (eˣ − 1) below 0."""
    return F.elu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Selu")
def selu(call: Call) -> Tensor:
    """gamma · elu(x, alpha), with the standard's constants, which are float32 numbers."""
    alpha = call.attribute("alpha", 1.6732632)
    return torch.mul(F.elu(call.tensor(0), alpha), call.attribute("gamma", 1.050701))


@operator("Celu")
def celu(call: Call) -> Tensor:
    """max(0, x) + min(0, alpha (e^(x / alpha) − 1))."""
    return F.celu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Sigmoid")
def sigmoid(call: Call) -> Tensor:
    """1 / (1 + e⁻ˣ)."""
    return torch.sigmoid(call.tensor(0))


@operator("Tanh")
def tanh(call: Call) -> Tensor:
    """The hyperbolic tangent."""
    return torch.tanh(call.tensor(0))


@operator("HardSigmoid")
def hard_sigmoid(call: Call) -> Tensor:
    """alpha · x + beta, limited to [0, 1]."""
    return torch.clamp(call.attribute("alpha", 0.2) * call.tensor(0) + call.attribute("beta", 0.5), 0.0, 1.0)


@operator("HardSwish")
def hard_swish(call: Call) -> Tensor:
    """x · min(max(x / 6 + 1/2, 0), 1)."""
    return F.hardswish(call.tensor(0))


@operator("Softplus")
def softplus(call: Call) -> Tensor:
    """log(1 + eˣ)."""
    return F.softplus(call.tensor(0))


@operator("Softsign")
def softsign(call: Call) -> Tensor:
    """x / (1 + |x|)."""
    return F.softsign(call.tensor(0))


@operator("Gelu")
def gelu(call: Call) -> Tensor:
    """x Φ(x), or its approximation by a hyperbolic tangent."""
    return F.gelu(call.tensor(0), approximate=call.attribute("approximate", "none"))


@operator("Mish")
def mish(call: Call) -> Tensor:
    """x · tanh(softplus(x))."""
    return F.mish(call.tensor(0))


@operator("Swish")
def swish(call: Call) -> Tensor:
    """x · sigmoid(alpha · x)."""
    x, alpha = call.tensor(0), call.attribute("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("Shrink")
def shrink(call: Call) -> Tensor:
    """x + bias below −lambd, x − bias above lambd, 0 between."""
    x, bias, limit = call.tensor(0), call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def _softmax(call: Call, *, log: bool) -> Tensor:
    """Along an axis; before operator set 13 over all axes from it on together."""
    x = call.tensor(0)
    axis = call.attribute("axis", -1 if call.version >= 13 else 1)
    function = F.log_softmax if log else F.softmax
    if call.version >= 13 or axis % x.ndim == x.ndim - 1:
        return function(x, dim=axis)
    axis %= x.ndim
    if axis == 0:
        raise call.node.error("axis 0 is that of the images before operator set 13, which it may not mix")
    if all(size == 1 for size in x.shape[axis + 1 :]):
        return function(x, dim=axis)
    return function(x.flatten(axis), dim=axis).reshape(x.shape)


@operator("Softmax")
def softmax(call: Call) -> Tensor:
    """e^xᵢ / Σ e^xⱼ."""
    return _softmax(call, log=False)


@operator("LogSoftmax")
def log_softmax(call: Call) -> Tensor:
    """xᵢ − log Σ e^xⱼ."""
    return _softmax(call, log=True)


@operator("LpNormalization")
def lp_normalization(call: Call) -> Tensor:
    """x divided by its norm of order p along an axis; 0 where that is 0."""
    x, axis, order = call.tensor(0), call.attribute("axis", -1), call.attribute("p", 2)
    norm = x.abs().sum(axis, keepdim=True) if order == 1 else x.square().sum(axis, keepdim=True).sqrt()
    if order not in (1, 2):
        raise call.node.error(f"expected a norm of order 1 or 2, found {order}")
    return x / norm.clamp_min(torch.finfo(torch.float32).tiny)


@operator("LRN")
def local_response_normalization(call: Call) -> Tensor:
    """x / (bias + alpha / size · Σ x²)^beta, the sum over neighbouring channels."""
    x, size = call.tensor(0), call.required("size")
    alpha, beta, bias = (
        call.attribute(name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    before = (size - 1) // 2
    squares = F.pad(x.square(), [0, 0] * (x.ndim - 2) + [before, size - 1 - before])
    total = torch.stack([squares.narrow(1, start, x.shape[1]) for start in range(size)]).sum(0)
    return torch.div(x, torch.pow(bias + alpha / size * total, beta))
