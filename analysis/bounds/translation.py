"""ATen operations as operations that can be bounded: one translator each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from certood.analysis.bounds.calls import Call, Reference
from certood.analysis.bounds.operations import (
    AxisFunction,
    ChannelAffine,
    Concatenation,
    Convolution,
    Linear,
    LogSoftmax,
    LogSumExp,
    Maximum,
    MaxPool,
    Monotone,
    Operation,
    Product,
    Reshape,
    Softmax,
    WeightedSum,
    activations,
)

# A translator gives the operation of a node that reads all inputs of the call, or a value that it has made of several nodes.
Translator = Callable[[Call], Operation | Reference]


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    numbers = [int(number) for number in value]
    return numbers[0], numbers[-1]


def _plain(call: Call, *ranks: int) -> None:
    """Refuse what is not (N, …) with so many axes."""
    for part in (*(source.layout for source in call.inputs), call.layout):
        if not part.is_plain or len(part.shape) not in ranks:
            raise call.refusal(f"unless it works on (N, …) with {' or '.join(map(str, ranks))} axes")


def _convolution(call: Call) -> Operation:
    _plain(call, 4)
    padding, groups = call.argument("padding"), call.argument("groups")
    geometry = _pair(call.argument("stride")), _pair(padding), _pair(call.argument("dilation"))
    return Convolution(call.required("weight"), call.constant("bias"), *geometry, groups)


def _linear(call: Call) -> Operation:
    if call.source.layout.axis == len(call.source.layout.shape) - 1:
        raise call.refusal("along the batch axis")
    return Linear(call.required("weight"), call.constant("bias"))


def _batch_norm(call: Call) -> Operation:
    _plain(call, 2, 3, 4, 5)
    if call.optional("training", False):
        raise call.refusal("in train mode")
    call.ignored("momentum", "cudnn_enabled")
    mean, variance = (call.constant(f"running_{name}") for name in ("mean", "var"))
    if mean is None or variance is None:
        raise call.refusal("with the statistics of the batch")
    weight, bias = call.constant("weight"), call.constant("bias")
    scale = torch.rsqrt(variance + call.argument("eps"))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (-1, *[1] * (len(call.shape) - 1))
    return ChannelAffine(scale.view(shape), shift.view(shape))


def _scaled(call: Call, scale: Tensor | float, shift: Tensor | float) -> Operation:
    return ChannelAffine(call.tensor(scale), call.tensor(shift))


def _sum(first: float, second: float) -> Translator:
    def translate(call: Call) -> Operation:
        one, two = call.argument("self"), call.argument("other")
        alpha = float(call.argument("alpha"))
        # alpha multiplies the subtrahend, which of rsub is `self`.
        factors = (first * alpha, second) if first < 0 else (first, second * alpha)
        if isinstance(one, Reference) and isinstance(two, Reference):
            return WeightedSum(*factors)
        if isinstance(one, Reference):
            return _scaled(call, factors[0], factors[1] * call.operand("other"))
        return _scaled(call, factors[1], factors[0] * call.operand("self"))

    return translate


def _multiplication(call: Call) -> Operation:
    one, two = call.argument("self"), call.argument("other")
    if isinstance(one, Reference) and isinstance(two, Reference):
        if one == two:
            raise call.refusal("as the square of an activation")
        return Product()
    return _scaled(call, call.operand("other" if isinstance(one, Reference) else "self"), 0.0)


def _division(call: Call) -> Operation:
    if call.optional("rounding_mode") is not None:
        raise call.refusal(f"with rounding_mode={call.arguments['rounding_mode']!r}")
    return _scaled(call, 1 / call.operand("other"), 0.0)


def _negation(call: Call) -> Operation:
    return _scaled(call, -1.0, 0.0)


def _reshaping(call: Call) -> Operation:
    # The layout of the value follows from its shape.
    call.ignored("size", "shape", "start_dim", "end_dim", "dim", "sizes")
    return Reshape(call.shape)


def _permutation(call: Call) -> Operation:
    before = call.source.layout
    dims = [axis % len(before.shape) for axis in call.argument("dims")]
    order = [0, *(1 + before.sample_axis(axis) for axis in dims if axis != before.axis or before.is_folded)]
    return Monotone(lambda x: x.permute(order), 0)


def _moved(overlap: int | None = None) -> Translator:
    """A linear operation on its first argument without negative coefficients: the ATen operation itself."""
    return lambda call: Monotone(call.on_batches(), overlap)


def _reduced(call: Call) -> Operation:
    """A sum or mean along axes of a sample."""
    call.axes("dim")
    call.argument("keepdim")
    call.check_all_read()
    return Monotone(call.on_batches(), 1)


def _identity(call: Call) -> Reference:
    """The same value."""
    call.ignored("memory_format", "p", "train", "implicit")
    return call.source


def _cast(call: Call) -> Reference:
    """A change of precision, device or strides, none of which exists here; a change of values is refused."""
    call.ignored("memory_format", "layout", "device", "pin_memory", "non_blocking", "copy")
    wanted = call.optional("dtype")
    if isinstance(call.optional("other"), Tensor):
        wanted = call.arguments["other"].dtype
    if wanted not in (None, torch.float64):
        raise call.refusal(f"as a cast of an activation to {wanted}, which changes its value")
    return call.source


def _concatenation(call: Call) -> Operation:
    axis = call.layout.sample_axis(call.argument("dim"))
    if len(call.inputs) != len(call.arguments["tensors"]):
        raise call.refusal("with constants")
    return Concatenation(axis)


def _along_axes(kind: type[AxisFunction]) -> Translator:
    def translate(call: Call) -> Operation:
        call.ignored("keepdim")
        if call.optional("half_to_float", False):
            raise call.refusal("from half precision")
        return kind(call.axes("dim"), call.shape)

    return translate


def _padding(call: Call) -> Operation:
    mode, value = call.optional("mode", "constant"), call.optional("value")
    if mode != "constant" or value not in (None, 0):
        raise call.refusal(f"in the mode {mode!r} with the value {value}")
    return Monotone(call.on_batches(), 0)


def _product_with_matrix(call: Call) -> Operation:
    first, second = list(call.arguments)[:2]
    if not isinstance(call.argument(first), Reference) or call.source.layout.axis == len(call.shape):
        raise call.refusal("unless it is an activation times a constant matrix")
    matrix = call.required(second)
    if matrix.ndim != 2:
        raise call.refusal("unless it is an activation times a constant matrix")
    return Linear(matrix.T.contiguous(), None)


def _average_pool(call: Call) -> Operation:
    _plain(call, 4)
    kernel = _pair(call.argument("kernel_size"))
    return Monotone(call.on_batches(), kernel[0] * kernel[1])


def _max_pool(call: Call) -> Operation:
    _plain(call, 4)
    kernel = _pair(call.argument("kernel_size"))
    stride = _pair(call.argument("stride") or kernel)
    padding, dilation = _pair(call.argument("padding")), _pair(call.argument("dilation"))
    return MaxPool(kernel, stride, padding, dilation, bool(call.argument("ceil_mode")))


def _fixed(activation: activations.Activation) -> Translator:
    return lambda call: activation


def _gelu(call: Call) -> Operation:
    if call.argument("approximate") != "none":
        raise call.refusal("in its tanh approximation; use the exact one")
    return activations.GELU


def _leaky_relu(call: Call) -> Operation:
    slope = float(call.argument("negative_slope"))
    if not 0 <= slope <= 1:
        raise call.refusal(f"with the slope {slope} (0 to 1 are)")
    return activations.leaky_relu(slope)


def _elu(call: Call) -> Operation:
    alpha, scale, input_scale = (float(call.argument(name)) for name in ("alpha", "scale", "input_scale"))
    if not 0 < alpha <= 1 or scale != 1 or input_scale != 1:
        raise call.refusal("with alpha above 1 or scaled (SELU)")
    return activations.elu(alpha)


def _clamp(low: str, high: str) -> Translator:
    def translate(call: Call) -> Operation:
        ends = []
        for name, without in ((low, -torch.inf), (high, torch.inf)):
            value = call.optional(name)
            if isinstance(value, (Tensor, Reference)):
                raise call.refusal("with a tensor as a limit")
            ends.append(without if value is None else float(value))
        return activations.clamp(*ends)

    return translate


def _softplus(call: Call) -> Operation:
    return activations.softplus(float(call.argument("beta")), float(call.argument("threshold")))


TRANSLATORS: dict[str, Translator] = {
    "conv2d": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "add": _sum(1.0, 1.0),
    "sub": _sum(1.0, -1.0),
    "rsub": _sum(-1.0, 1.0),
    "mul": _multiplication,
    "div": _division,
    "neg": _negation,
    "view": _reshaping,
    "reshape": _reshaping,
    "_unsafe_view": _reshaping,
    "flatten": _reshaping,
    "unflatten": _reshaping,
    "squeeze": _reshaping,
    "unsqueeze": _reshaping,
    "permute": _permutation,
    "transpose": _moved(0),
    "slice": _moved(0),
    "select": _moved(0),
    "cat": _concatenation,
    "mean": _reduced,
    "sum": _reduced,
    "amax": _along_axes(Maximum),
    "max": _along_axes(Maximum),
    "logsumexp": _along_axes(LogSumExp),
    "softmax": _along_axes(Softmax),
    "_softmax": _along_axes(Softmax),
    "log_softmax": _along_axes(LogSoftmax),
    "_log_softmax": _along_axes(LogSoftmax),
    "pad": _padding,
    "constant_pad_nd": _padding,
    "matmul": _product_with_matrix,
    "mm": _product_with_matrix,
    "adaptive_avg_pool2d": _moved(),
    "avg_pool2d": _average_pool,
    "max_pool2d": _max_pool,
    "relu": _fixed(activations.RELU),
    "sigmoid": _fixed(activations.SIGMOID),
    "tanh": _fixed(activations.TANH),
    "silu": _fixed(activations.SILU),
    "exp": _fixed(activations.EXP),
    "abs": _fixed(activations.ABS),
    "hardsigmoid": _fixed(activations.HARDSIGMOID),
    "hardswish": _fixed(activations.HARDSWISH),
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "hardtanh": _clamp("min_val", "max_val"),
    "relu6": lambda call: activations.clamp(0.0, 6.0),
    "clamp": _clamp("min", "max"),
    "softplus": _softplus,
    "dropout": _identity,
    "clone": _identity,
    "contiguous": _identity,
    "alias": _identity,
    "detach": _identity,
    "lift_fresh_copy": _identity,
    "_to_copy": _cast,
    "to": _cast,
    "type_as": _cast,
}
