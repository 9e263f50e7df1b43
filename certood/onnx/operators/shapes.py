"""Operators that arrange values anew without computing: reshape, transpose, expand, concatenate, split …"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.onnx.calls import Call, Size, operator
from certood.onnx.operators.limits import check_size


@operator("Reshape")
def reshape(call: Call) -> Tensor:
    """The same values in another shape; −1 is what remains, 0 what was there (or 0 with `allowzero`).

    A shape without the number of images, as a file for one image has it, is that of each image.
    """
    x, sizes, static = call.tensor(0), call.sizes(1), call.static(1)
    if sizes is None or static is None:
        raise call.node.error("the shape is missing")
    call.reads.outer = 1
    keep = not call.attribute("allowzero", 0)
    axis = call.batch_axis(0)
    copied = [keep and size == 0 and not slope for size, slope in zip(static.constants, static.slopes, strict=True)]
    target = [x.shape[place] if copy else sizes[place] for place, copy in enumerate(copied)]
    if axis is None or static.follows_batch or (axis < len(copied) and copied[axis]):
        return x.reshape(target)
    return x.reshape(_for_each_image(call, [int(size) for size in target], x.shape, axis))


def _for_each_image(call: Call, target: list[int], shape: Sequence[Size], axis: int) -> list[Size]:
    """A shape for one image as one for all of them, which lie along `axis` of an input of this shape.

    Reshaping keeps the order of values, so the images come where the product of the sizes before is that of the input: at
    an axis of size 1 if there is one there (that which −1 stands for, that of the input, or the first one), else −1 takes
    them in, else the axis where they come. The last axis holds what belongs together, so the one before it takes them instead.
    """
    lies = call.batch_axes[0]
    single = [int(size) for place, size in enumerate(shape) if place != axis]
    single.insert(axis, lies.multiple)
    total, free = math.prod(single), [place for place, size in enumerate(target) if size == -1]
    known = math.prod(size for size in target if size != -1)
    one = [total // known if size == -1 and known else size for size in target]
    if math.prod(one) != total:
        raise call.node.error(f"a shape {target} does not hold the {total} values of an image")
    before = math.prod(single[:axis]) * lies.outer
    ahead = [math.prod(one[:place]) for place in range(len(one) + 1)]
    places = [place for place in range(len(one)) if ahead[place] == before]
    empty = [place for place in places if one[place] == 1]
    if not empty and free:
        call.reads.outer = max(1, before // ahead[free[0]])
        return list(target)
    preferred = [place for place in (*free, axis) if place in empty] or empty or places
    within = ahead.index(before) - 1 if before in ahead else -1
    if within >= 0 and not empty and (not places or places[0] == len(one) - 1):
        call.reads.outer = one[within]
        preferred = [within]
    if not preferred:
        raise call.node.error(
            f"a shape {target} would mix images along axis {axis} of an input of shape {tuple(shape)}"
        )
    found: list[Size] = list(one)
    found[preferred[0]] = one[preferred[0]] * call.batch
    return found


@operator("Flatten")
def flatten(call: Call) -> Tensor:
    """A matrix: the axes before `axis`, and those from it on; one row per image also where `axis` is 0."""
    x, axis = call.tensor(0), call.attribute("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1 or (axis == 0 and call.batch_axis(0) == 0):
        return x.flatten(1) if x.ndim > 1 else x.reshape(-1, 1)
    after = math.prod(x.shape[axis:])
    return x.reshape(-1, after)


@operator("Transpose")
def transpose(call: Call) -> Tensor:
    """The axes in another order; reversed unless `perm` says otherwise."""
    x = call.tensor(0)
    return x.permute(call.attribute("perm", list(range(x.ndim))[::-1]))


@operator("Squeeze")
def squeeze(call: Call) -> Tensor:
    """Translate Squeeze: the value without the named axes of size 1, or without all of them."""
    x = call.tensor(0)
    axes = call.attribute("axes", None) if call.version < 13 else call.sizes(1)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if axis != call.batch_axis(0) and size == 1]
    wrong = [
        axis
        for axis in axes
        if not -x.ndim <= axis < x.ndim or axis % x.ndim == call.batch_axis(0) or x.shape[axis] != 1
    ]
    if wrong:
        raise call.node.error(
            f"axes {wrong} of an input of shape {tuple(x.shape)} cannot be left out: only axes of size 1 other than "
            "that of the images can"
        )
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x


@operator("Unsqueeze")
def unsqueeze(call: Call) -> Tensor:
    """Translate Unsqueeze: the value with new axes of size 1 at these places of the result."""
    x = call.tensor(0)
    axes = (call.attribute("axes", None) if call.version < 13 else call.sizes(1)) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Expand")
def expand(call: Call) -> Tensor:
    """Repeated along axes of size 1, by broadcasting with a shape."""
    x, sizes = call.tensor(0), call.sizes(1)
    if sizes is None:
        raise call.node.error("the shape is missing")
    rank = max(x.ndim, len(sizes))
    own = [1] * (rank - x.ndim) + list(x.shape)
    wanted = [1] * (rank - len(sizes)) + list(sizes)
    target = [size if isinstance(more, int) and more == 1 else more for size, more in zip(own, wanted, strict=True)]
    check_size(call, target)
    return x.expand(target)


@operator("Tile")
def tile(call: Call) -> Tensor:
    """Repeated so many times along each axis."""
    x, repeats = call.tensor(0), call.sizes(1)
    if repeats is None or len(repeats) != x.ndim:
        raise call.node.error(f"expected a number of repetitions for each of {x.ndim} axes, found {repeats}")
    check_size(call, [size * times for size, times in zip(x.shape, repeats, strict=True)])
    return x.repeat(repeats)


@operator("Concat")
def concatenate(call: Call) -> Tensor:
    """All inputs one after the other along an axis; a constant for one image is repeated for each image."""
    parts, axis = call.tensors(), call.required("axis")
    rank = parts[0].ndim
    axes = {found.axis for found in call.batch_axes.values()}
    if len(axes) == 1 and (lies := axes.pop()) != axis % rank:
        whole = next(part.shape[lies] for index, part in enumerate(parts) if index in call.batch_axes)
        parts = [
            part.expand([whole if place == lies else size for place, size in enumerate(part.shape)])
            if index not in call.batch_axes and part.shape[lies] == 1
            else part
            for index, part in enumerate(parts)
        ]
    return torch.cat(parts, dim=axis)


@operator("Split")
def split(call: Call) -> tuple[Tensor, ...]:
    """Parts along an axis: of these sizes, or equal ones (the last one smaller) for each output."""
    x, axis = call.tensor(0), call.attribute("axis", 0)
    sizes = call.attribute("split", None) if call.version < 13 else call.sizes(1)
    count = call.attribute("num_outputs", len(call.node.outputs)) if call.version >= 18 else len(call.node.outputs)
    if sizes is None:
        whole = int(x.shape[axis])
        each = -(-whole // count)
        sizes = [min(each, whole - each * place) for place in range(count)]
    return tuple(torch.split(x, [int(size) for size in sizes], dim=axis))


@operator("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    """Blocks of channels become squares of pixels; the order of channels is DCR or CRD."""
    x, size, mode = call.tensor(0), call.required("blocksize"), call.attribute("mode", "DCR")
    if mode == "CRD":
        return F.pixel_shuffle(x, size)
    channels, height, width = (int(part) for part in x.shape[1:])
    each = channels // size**2
    blocks = x.reshape(-1, size, size, each, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(-1, each, height * size, width * size)


@operator("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    """Squares of pixels become blocks of channels."""
    x, size = call.tensor(0), call.required("blocksize")
    channels, height, width = (int(part) for part in x.shape[1:])
    blocks = x.reshape(-1, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(-1, channels * size**2, height // size, width // size)


@operator("Trilu")
def triangle(call: Call) -> Tensor:
    """The upper or lower triangle of matrices, 0 elsewhere."""
    x, diagonal = call.tensor(0), int(call.number(1) or 0)
    return torch.triu(x, diagonal) if call.attribute("upper", 1) else torch.tril(x, diagonal)
