"""Arithmetic, functions of a number, comparisons and logic, element by element with broadcasting."""

import math
from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from certood.onnx.calls import OPERATORS, Call, operator

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor(0))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor(0), call.tensor(1))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: reduce(function, call.tensors())


OPERATORS |= {name: _unary(function) for name, function in UNARY.items()}
OPERATORS |= {name: _binary(function) for name, function in BINARY.items()}
OPERATORS |= {name: _variadic(function) for name, function in VARIADIC.items()}


@operator("Mean")
def mean_of_inputs(call: Call) -> Tensor:
    """The mean of all inputs."""
    parts = call.tensors()
    return reduce(torch.add, parts) / len(parts)


@operator("Div")
def division(call: Call) -> Tensor:
    """a / b; integers are divided towards zero."""
    one, two = call.tensor(0), call.tensor(1)
    return one / two if one.is_floating_point() else torch.div(one, two, rounding_mode="trunc")


@operator("Mod")
def remainder(call: Call) -> Tensor:
    """The remainder with the sign of the divisor, or with that of the dividend where `fmod` is 1."""
    function = torch.fmod if call.attribute("fmod", 0) else torch.remainder
    return function(call.tensor(0), call.tensor(1))


@operator("Pow")
def power(call: Call) -> Tensor:
    """base ** exponent in the type of the base."""
    base = call.tensor(0)
    exponent = call.static(1) if call.is_known(1) else None
    if exponent is not None and len(exponent.constants) == 1 and not exponent.follows_batch and not exponent.shape:
        value = exponent.constants[0]
        found = torch.pow(base, int(value) if value == math.trunc(value) else value)
    else:
        found = torch.pow(base, call.tensor(1))
    return found if found.dtype == base.dtype else found.to(base.dtype)


@operator("Where")
def choice(call: Call) -> Tensor:
    """The second input where the first one is true, the third elsewhere."""
    return torch.where(call.tensor(0), call.tensor(1), call.tensor(2))


@operator("Clip")
def clip(call: Call) -> Tensor:
    """Values limited to [min, max]; the limits are attributes before operator set 11, inputs since."""
    x = call.tensor(0)
    if call.version < 11:
        low, high = call.attribute("min", None), call.attribute("max", None)
    elif all(call.is_known(index) or not call.has(index) for index in (1, 2)):
        low, high = call.number(1), call.number(2)
    else:
        low, high = call.optional(1), call.optional(2)
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)
    if low is None and high is None:
        return x
    if not x.is_floating_point():
        low, high = (None if limit is None else int(limit) for limit in (low, high))
    return torch.clamp(x, low, high)


@operator("Identity")
def identity(call: Call) -> Tensor:
    """The input itself."""
    return call.tensor(0)


@operator("Dropout")
def dropout(call: Call) -> Tensor:
    """The input itself: nothing is dropped at inference; raises CheckpointError in training mode."""
    call.attribute("ratio", 0.5)
    call.attribute("seed", 0)
    call.number(1)
    if call.number(2):
        raise call.node.error("it drops values at random, which a network that is evaluated may not")
    return call.tensor(0)
