"""ATen operations as operations that can be bounded: one translator each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations import activations
from certood.analysis.bounds.operations.axis import AxisFunction, LogSoftmax, LogSumExp, Maximum, Softmax
from certood.analysis.bounds.operations.base import (
    ChannelAffine,
    Concatenation,
    Linear,
    Monotone,
    Operation,
    Reshape,
    WeightedSum,
)
from certood.analysis.bounds.operations.convolution import Convolution
from certood.analysis.bounds.operations.pairs import MaxPool, Product
from certood.errors import UnsupportedOperation


@dataclass(frozen=True)
class Call:
    """An ATen call under translation: arguments are numbers, constant tensors in float64, or `Reference`s to nodes."""

    target: str
    arguments: tuple[Any, ...]
    shape: torch.Size
    input_shapes: tuple[torch.Size, ...]


@dataclass(frozen=True)
class Reference:
    """An argument that depends on the image: the index of its node."""

    index: int


Translator = Callable[[Call], Operation]


def _pair(value: Any, default: int = 0) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    numbers = [int(number) for number in value] or [default]
    return numbers[0], numbers[-1]


def _argument(call: Call, position: int, default: Any) -> Any:
    return call.arguments[position] if len(call.arguments) > position else default


def _refuse(call: Call, why: str) -> UnsupportedOperation:
    return UnsupportedOperation(f"operation {call.target} is not supported {why}")


def _convolution(call: Call) -> Operation:
    weight, bias = call.arguments[1], _argument(call, 2, None)
    stride, padding, dilation, groups = (_argument(call, place, one) for place, one in ((3, 1), (4, 0), (5, 1), (6, 1)))
    if isinstance(padding, str) or isinstance(weight, Reference) or weight.ndim != 4:
        raise _refuse(call, "with a padding given by name or a weight that depends on the image")
    return Convolution(weight, bias, _pair(stride, 1), _pair(padding), _pair(dilation, 1), groups)


def _linear(call: Call) -> Operation:
    if any(isinstance(part, Reference) for part in call.arguments[1:]):
        raise _refuse(call, "with a weight that depends on the image")
    return Linear(call.arguments[1], _argument(call, 2, None))


def _batch_norm(call: Call) -> Operation:
    _, weight, bias, mean, variance = call.arguments[:5]
    epsilon = next(part for part in reversed(call.arguments) if isinstance(part, float))
    scale = torch.rsqrt(variance + epsilon) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    shape = (-1, *[1] * (len(call.shape) - 1))
    return ChannelAffine(scale.view(shape), shift.view(shape))


def _per_sample(constant: Tensor, call: Call) -> Tensor:
    """A constant as it stands against one sample: without a batch axis of one."""
    if constant.ndim > len(call.shape):
        if constant.shape[0] != 1:
            raise _refuse(call, "with a constant that differs between the images of a batch")
        constant = constant[0]
    return constant.to(torch.float64)


def _sum(sign: float) -> Translator:
    def translate(call: Call) -> Operation:
        one, two, *rest = call.arguments
        factor = sign * (rest[0] if rest else 1)
        if isinstance(one, Reference) and isinstance(two, Reference):
            return WeightedSum(1.0, float(factor))
        constant = torch.as_tensor(two if isinstance(one, Reference) else one, dtype=torch.float64)
        constant = _per_sample(constant, call)
        if isinstance(one, Reference):
            return ChannelAffine(torch.ones(()).double(), factor * constant)
        return ChannelAffine(torch.tensor(float(factor)).double(), constant)

    return translate


def _reverse_subtraction(call: Call) -> Operation:
    return ChannelAffine(torch.tensor(-1.0).double(), _per_sample(torch.as_tensor(call.arguments[1]).double(), call))


def _multiplication(call: Call) -> Operation:
    one, two = call.arguments[:2]
    if isinstance(one, Reference) and isinstance(two, Reference):
        if one == two:
            raise _refuse(call, "as the square of an activation")
        return Product()
    constant = _per_sample(torch.as_tensor(two if isinstance(one, Reference) else one, dtype=torch.float64), call)
    return ChannelAffine(constant, torch.zeros(()).double())


def _division(call: Call) -> Operation:
    one, two = call.arguments[:2]
    if not isinstance(one, Reference) or isinstance(two, Reference):
        raise _refuse(call, "with a divisor that depends on the image")
    divisor = _per_sample(torch.as_tensor(two, dtype=torch.float64), call)
    return ChannelAffine(1 / divisor, torch.zeros(()).double())


def _negation(call: Call) -> Operation:
    return ChannelAffine(torch.tensor(-1.0).double(), torch.zeros(()).double())


def _reshaping(call: Call) -> Operation:
    shape = tuple(call.shape)
    if torch.Size(shape).numel() != call.input_shapes[0].numel():
        raise _refuse(call, "where it mixes images of a batch")
    return Reshape(shape)


def _axis(axis: int, call: Call) -> int:
    """An axis of the batch tensor, made non-negative; the batch axis itself is refused."""
    positive = axis % (len(call.input_shapes[0]) + 1)
    if positive == 0:
        raise _refuse(call, "along the batch axis")
    return positive


def _permutation(call: Call) -> Operation:
    order = [axis % (len(call.shape) + 1) for axis in call.arguments[1]]
    if order[0] != 0:
        raise _refuse(call, "where it moves the batch axis")
    return Monotone(lambda x: x.permute(order), 0)


def _transposition(call: Call) -> Operation:
    one, two = _axis(call.arguments[1], call), _axis(call.arguments[2], call)
    return Monotone(lambda x: x.transpose(one, two), 0)


def _slice(call: Call) -> Operation:
    raw = call.arguments[1] if len(call.arguments) > 1 else 0
    start, end, step = (_argument(call, place, default) for place, default in ((2, None), (3, None), (4, 1)))
    if raw == 0 and start in (None, 0) and (end is None or end >= 2**31):
        return Monotone(lambda x: x, 0)
    axis = _axis(raw, call)
    return Monotone(lambda x: x[(slice(None),) * axis + (slice(start, end, step),)], 0)


def _selection(call: Call) -> Operation:
    axis, index = _axis(call.arguments[1], call), call.arguments[2]
    return Monotone(lambda x: x.select(axis, index), 0)


def _concatenation(call: Call) -> Operation:
    axis = (_argument(call, 1, 0)) % (len(call.shape) + 1)
    if axis == 0 or len(call.input_shapes) != len(call.arguments[0]):
        raise _refuse(call, "along the batch axis or with constants")
    return Concatenation(axis - 1)


def _axes(call: Call) -> list[int]:
    """The axes of the batch tensor that an operation runs over."""
    axes = _argument(call, 1, None)
    if axes is None or axes == []:
        raise _refuse(call, "over the batch axis")
    return [_axis(axis, call) for axis in ([axes] if isinstance(axes, int) else axes)]


def _mean(call: Call) -> Operation:
    chosen, keep = _axes(call), bool(_argument(call, 2, False))
    return Monotone(lambda x: x.mean(chosen, keepdim=keep), 1)


def _total(call: Call) -> Operation:
    chosen, keep = _axes(call), bool(_argument(call, 2, False))
    return Monotone(lambda x: x.sum(chosen, keepdim=keep), 1)


def _along_axes(kind: type[AxisFunction]) -> Translator:
    return lambda call: kind([axis - 1 for axis in _axes(call)], call.shape)


def _padding(call: Call) -> Operation:
    sizes, value = [int(size) for size in call.arguments[1]], call.arguments[-1]
    if call.target == "pad" and _argument(call, 2, "constant") != "constant":
        raise _refuse(call, f"in the mode {call.arguments[2]!r} (constant is)")
    if isinstance(value, (int, float)) and value != 0:
        raise _refuse(call, f"with the value {value} (0 is)")
    if len(sizes) > 2 * len(call.shape):
        raise _refuse(call, "along the batch axis")
    return Monotone(lambda x: F.pad(x, sizes), 0)


def _product_with_matrix(call: Call) -> Operation:
    one, two = call.arguments[:2]
    if not isinstance(one, Reference) or isinstance(two, Reference) or two.ndim != 2:
        raise _refuse(call, "unless it is an activation times a constant matrix")
    return Linear(two.T.contiguous(), None)


def _adaptive_average(call: Call) -> Operation:
    size = _pair(call.arguments[1])
    return Monotone(lambda x: F.adaptive_avg_pool2d(x, size))


def _average_pool(call: Call) -> Operation:
    kernel = _pair(call.arguments[1])
    stride = _pair(_argument(call, 2, ()) or kernel)
    padding = _pair(_argument(call, 3, 0))
    ceil, count, divisor = _argument(call, 4, False), _argument(call, 5, True), _argument(call, 6, None)
    return Monotone(lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, count, divisor), kernel[0] * kernel[1])


def _max_pool(call: Call) -> Operation:
    kernel = _pair(call.arguments[1])
    stride = _pair(_argument(call, 2, ()) or kernel)
    return MaxPool(
        kernel, stride, _pair(_argument(call, 3, 0)), _pair(_argument(call, 4, 1), 1), bool(_argument(call, 5, False))
    )


def _fixed(activation: activations.Activation) -> Translator:
    return lambda call: activation


def _gelu(call: Call) -> Operation:
    if "tanh" in call.arguments[1:]:
        raise _refuse(call, "in its tanh approximation; use the exact one")
    return activations.GELU


def _leaky_relu(call: Call) -> Operation:
    slope = float(_argument(call, 1, 0.01))
    if not 0 <= slope <= 1:
        raise _refuse(call, f"with the slope {slope} (0 to 1 are)")
    return activations.leaky_relu(slope)


def _elu(call: Call) -> Operation:
    alpha, scale, input_scale = (float(_argument(call, place, 1.0)) for place in (1, 2, 3))
    if not 0 < alpha <= 1 or scale != 1 or input_scale != 1:
        raise _refuse(call, "with alpha above 1 or scaled (SELU)")
    return activations.elu(alpha)


def _clamp(call: Call) -> Operation:
    low, high = _argument(call, 1, None), _argument(call, 2, None)
    defaults = (-1.0, 1.0) if call.target == "hardtanh" else (-torch.inf, torch.inf)
    if call.target == "relu6":
        low, high = 0.0, 6.0
    return activations.clamp(float(defaults[0] if low is None else low), float(defaults[1] if high is None else high))


def _softplus(call: Call) -> Operation:
    return activations.softplus(float(_argument(call, 1, 1.0)))


TRANSLATORS: dict[str, Translator] = {
    "conv2d": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "add": _sum(1.0),
    "sub": _sum(-1.0),
    "rsub": _reverse_subtraction,
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
    "transpose": _transposition,
    "slice": _slice,
    "select": _selection,
    "cat": _concatenation,
    "mean": _mean,
    "sum": _total,
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
    "adaptive_avg_pool2d": _adaptive_average,
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
    "hardtanh": _clamp,
    "relu6": _clamp,
    "clamp": _clamp,
    "softplus": _softplus,
}
