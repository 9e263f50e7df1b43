"""Operators that take parts of a value by position, or put parts into it; positions must not depend on the image."""

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.onnx.calls import Call, Static, operator
from certood.onnx.operators.limits import check_size
from certood.onnx.operators.windows import torch_padding

# From this end on a slice means "to the last element", whatever the size of the axis; before its negative, "from the first".
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
    start = 0 if step > 0 and start <= -ENDLESS else start
    to_last = isinstance(end, int) and end >= ENDLESS
    if start == 0 and step == 1 and to_last:
        return x
    begin = (slice(None),) * axis
    if step > 0:
        return x[(*begin, slice(start, None if to_last else end, step))]
    chosen = list(range(int(x.shape[axis])))[slice(start, int(end), step)]
    if not chosen:
        return x.narrow(axis, 0, 0)
    # Ascending positions from behind: torch has no negative steps.
    return x[(*begin, slice(chosen[-1], chosen[0] + 1, -step))].flip(axis)


def _within(call: Call, static: Static, size: int) -> list[int]:
    """Positions along an axis of this size, negative ones counted from the end."""
    positions = [int(place) for place in static.at(call.batch)]
    wrong = [place for place in positions if not -size <= place < size]
    if wrong:
        raise call.node.error(f"position {wrong[0]} lies outside of an axis of size {size}")
    return [place % size for place in positions]


@operator("Gather")
def gather(call: Call) -> Tensor:
    """The elements at these positions along an axis, whose place the axes of the positions take."""
    x, axis = call.tensor(0), call.attribute("axis", 0)
    axis %= x.ndim
    if axis == call.batch_axis(0):
        return _gathered_from_each(call, x, axis)
    static = call.static(1)
    if static is None:
        raise call.node.error("the positions are missing")
    positions = _within(call, static, int(x.shape[axis]))
    if not static.shape:
        return x.select(axis, positions[0])
    found = _selected(x, axis, positions)
    return found if len(static.shape) == 1 else found.unflatten(axis, static.shape)


def _gathered_from_each(call: Call, x: Tensor, axis: int) -> Tensor:
    """The same positions among the values of each image, which lie one after the other along this axis.

    The positions are those of one image, or grow from image to image by the number of its values.
    """
    size = call.batch_axes[0].multiple
    law = call.by_image(1) if call.has(1) else None
    static = law.first if law else call.static(1)
    if static is None or size == 1 or (law and law.step != size):
        raise call.node.error("it selects single images of a batch, so that its result is not one for each image")
    images, shape = axis, static.shape or (1,)
    found: Tensor = _selected(x.unflatten(axis, (-1, size)), axis + 1, _within(call, static, size)).unflatten(
        axis + 1, shape
    )
    if law:
        images += law.axis
        found = found.movedim(axis, images)
    return found.flatten(images, images + 1)


def _selected(x: Tensor, axis: int, positions: list[int]) -> Tensor:
    if positions == list(range(int(x.shape[axis]))):
        return x
    return x.index_select(axis, torch.tensor(positions, dtype=torch.int64, device=x.device))


@operator("GatherElements")
def gather_elements(call: Call) -> Tensor:
    """For each position of the indices, the element at that index along an axis."""
    x, indices, axis = call.tensor(0), call.tensor(1), call.attribute("axis", 0)
    size = x.shape[axis]
    return torch.gather(x, axis, torch.where(indices < 0, indices + size, indices).to(torch.int64))


def _tuples(call: Call, index: int) -> tuple[Tensor, ...]:
    """Known positions on the first axes of input 0, a tensor for each of these axes, which may not be that of the images."""
    static = call.static(index)
    if static is None or not static.shape:
        raise call.node.error("the positions are missing")
    lies = call.batch_axis(0)
    if lies is not None and lies < static.shape[-1]:
        raise call.node.error("it selects single images of a batch, so that its result is not one for each image")
    numbers = [int(number) for number in static.at(call.batch)]
    return torch.tensor(numbers, dtype=torch.int64, device=call.tensor(0).device).reshape(static.shape).unbind(-1)


@operator("GatherND")
def gather_nd(call: Call) -> Tensor:
    """The parts of a value at known positions on its first axes."""
    call.expect("batch_dims", 0)
    found: Tensor = call.tensor(0)[_tuples(call, 1)]
    return found


@operator("ScatterND")
def scatter_nd(call: Call) -> Tensor:
    """A value with parts put in at known positions on its first axes."""
    call.expect("reduction", "none")
    if 2 in call.batch_axes and 0 not in call.batch_axes:
        raise call.node.error("it puts parts of images into a value that is the same for all of them")
    return call.tensor(0).index_put(_tuples(call, 1), call.tensor(2))


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
