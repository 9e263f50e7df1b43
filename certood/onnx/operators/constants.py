"""Values that shapes give, constants, and the type of numbers."""

import torch
from torch import Tensor

from certood.onnx.calls import Call, operator
from certood.onnx.operators.limits import check_size

# TensorProto.DataType: the types that a cast keeps or rounds to. Half precisions would change every value after them.
FLOATING = (1, 11)
INTEGERS = {
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
}


def _converted(call: Call, x: Tensor, kind: int) -> Tensor:
    if kind in FLOATING:
        return x if x.dtype == call.dtype else x.to(call.dtype)
    if kind not in INTEGERS:
        raise call.node.error(
            f"a cast to data type {kind} would round the values of the network; float, double, bool and integers are supported"
        )
    return x if x.dtype == INTEGERS[kind] else x.to(INTEGERS[kind])


@operator("Cast")
def cast(call: Call) -> Tensor:
    """The same numbers in another type: integers cut off what follows the point, bool is whether a number is not 0."""
    call.attribute("saturate", 1)
    call.attribute("round_mode", "up")
    return _converted(call, call.tensor(0), call.required("to"))


@operator("CastLike")
def cast_like(call: Call) -> Tensor:
    """The numbers of the first input in the type of the second."""
    call.attribute("saturate", 1)
    call.attribute("round_mode", "up")
    like = call.tensor(1)
    return call.tensor(0).to(like.dtype)


@operator("Shape")
def shape_of(call: Call) -> Tensor:
    """The sizes of a value along its axes from `start` to before `end`."""
    x = call.tensor(0)
    start, end = call.attribute("start", 0), call.attribute("end", x.ndim)
    return torch.tensor([int(size) for size in x.shape[start:end]], dtype=torch.int64)


@operator("Size")
def size_of(call: Call) -> Tensor:
    """The number of elements of a value."""
    return torch.tensor(call.tensor(0).numel(), dtype=torch.int64)


@operator("ConstantOfShape")
def constant_of_shape(call: Call) -> Tensor:
    """One number everywhere, in a shape."""
    sizes, value = call.sizes(0), call.attribute("value", None)
    if sizes is None:
        raise call.node.error("the shape is missing")
    check_size(call, sizes)
    if value is None or isinstance(value, float):
        return torch.full(sizes, value or 0.0, dtype=call.dtype, device=call.device)
    return torch.full(sizes, value, dtype=torch.bool if isinstance(value, bool) else torch.int64, device=call.device)


@operator("Range")
def arithmetic_progression(call: Call) -> Tensor:
    """start, start + delta, … before limit."""
    start, limit, delta = (call.static(index) for index in range(3))
    floating = any(isinstance(part.constants[0], float) for part in (start, limit, delta) if part is not None)
    numbers = [call.number(index) if floating else (call.sizes(index) or [0])[0] for index in range(3)]
    first, last, step = (0 if number is None else number for number in numbers)
    if isinstance(last, (int, float)) and isinstance(first, (int, float)) and step:
        check_size(call, [max(0, int((last - first) / step))])
    return torch.arange(first, last, step, dtype=call.dtype if floating else torch.int64, device=call.device)


@operator("EyeLike")
def identity_matrix(call: Call) -> Tensor:
    """A matrix in the shape of the input with 1 on diagonal `k`, 0 elsewhere."""
    x, kind = call.tensor(0), call.attribute("dtype", 1)
    rows, columns = (int(size) for size in x.shape)
    diagonals = torch.arange(columns, device=call.device) - torch.arange(rows, device=call.device).unsqueeze(1)
    return _converted(call, diagonals == call.attribute("k", 0), kind)
