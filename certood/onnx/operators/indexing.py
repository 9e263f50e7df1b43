"""Operators that take parts of a value by position, or put parts into it; positions must not depend on the image."""

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.onnx.calls import Call, Static, operator
from certood.onnx.operators.limits import check_size
from certood.onnx.operators.windows import torch_padding

# From this end on a slice means "to the last element", whatever the size of the axis.
ENDLESS = 2**31 - 1


@operator("Slice")
def slice_axes(call: Call) -> Tensor:
    """Elements start, start + step, … before end along axes; negative positions count from the end."""
    x = call.tensor(0)
    if call.version < 10:
        starts, ends, axes, steps = call.required("starts"), call.required("ends"), call.attribute("axes", None), None
    else:
        starts, ends, axes, steps = (call.sizes(index) for index in range(1, 5))
    if starts is None or ends is None:
        raise call.node.error("starts or ends are missing")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        x = _sliced(x, int(axis) % x.ndim, int(start), end, int(step))
    return x


def _sliced(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    if start == 0 and step == 1 and isinstance(end, int) and end >= ENDLESS:
        return x
    begin = (slice(None),) * axis
    if step > 0:
        return x[(*begin, slice(start, end, step))]
    chosen = list(range(int(x.shape[axis])))[slice(start, int(end), step)]
    if not chosen:
        return x.narrow(axis, 0, 0)
    # Ascending positions from behind: torch has no negative steps.
    return x[(*begin, slice(chosen[-1], chosen[0] + 1, -step))].flip(axis)


def _positions(call: Call, index: int, size: int) -> tuple[Static, list[int]]:
    """Positions along an axis of this size, negative ones counted from the end."""
    static, positions = call.static(index), call.sizes(index)
    if static is None or positions is None:
        raise call.node.error("the positions are missing")
    wrong = [place for place in positions if not -size <= place < size]
    if wrong:
        raise call.node.error(f"position {wrong[0]} lies outside of an axis of size {size}")
    return static, [int(place) % size for place in positions]


@operator("Gather")
def gather(call: Call) -> Tensor:
    """The elements at these positions along an axis, whose place the axes of the positions take."""
    x, axis = call.tensor(0), call.attribute("axis", 0)
    axis %= x.ndim
    if axis == call.batch_axis(0):
        raise call.node.error("it selects single images of a batch, so that its result is not one for each image")
    static, positions = _positions(call, 1, int(x.shape[axis]))
    if not static.shape:
        return x.select(axis, positions[0])
    found = x.index_select(axis, torch.tensor(positions, dtype=torch.int64, device=x.device))
    return found if len(static.shape) == 1 else found.unflatten(axis, static.shape)


@operator("GatherElements")
def gather_elements(call: Call) -> Tensor:
    """For each position of the indices, the element at that index along an axis."""
    x, indices, axis = call.tensor(0), call.tensor(1), call.attribute("axis", 0)
    size = x.shape[axis]
    return torch.gather(x, axis, torch.where(indices < 0, indices + size, indices).to(torch.int64))


@operator("Pad")
def pad(call: Call) -> Tensor:
    """Values before and after along axes: a constant, the reflection, the edge repeated, or the other end (wrap)."""
    x, mode = call.tensor(0), call.attribute("mode", "constant")
    if call.version < 11:
        pads, value, axes = call.required("pads"), call.attribute("value", 0.0), None
    else:
        pads, value, axes = call.sizes(1), call.number(2) or 0.0, call.sizes(3)
    if pads is None:
        raise call.node.error("the sizes of the padding are missing")
    chosen = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in axes]
    before, after = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(chosen):
        before[axis], after[axis] = int(pads[place]), int(pads[len(chosen) + place])
    if mode == "constant":
        first = next((axis for axis in range(x.ndim) if before[axis] or after[axis]), x.ndim - 1)
        if not any(before) and not any(after):
            return x
        check_size(
            call,
            [
                size + sum(ends)
                for size, *ends in zip(map(int, x.shape[first:]), before[first:], after[first:], strict=True)
            ],
        )
        return F.pad(x, torch_padding(before[first:], after[first:]), value=value)
    if mode not in ("reflect", "edge", "wrap"):
        raise call.node.error(f"mode {mode!r} is not supported (constant, reflect, edge and wrap are)")
    for axis in range(x.ndim):
        if before[axis] or after[axis]:
            x = x.index_select(axis, _mirrored(mode, int(x.shape[axis]), before[axis], after[axis]).to(x.device))
    return x


def _mirrored(mode: str, size: int, before: int, after: int) -> Tensor:
    """The positions along an axis of a value that is padded by its own elements."""
    places = range(-before, size + after)
    if mode == "edge":
        found = [min(max(place, 0), size - 1) for place in places]
    elif mode == "wrap":
        found = [place % size for place in places]
    else:
        period = max(1, 2 * (size - 1))
        found = [min(place % period, period - place % period) if size > 1 else 0 for place in places]
    return torch.tensor(found, dtype=torch.int64)
