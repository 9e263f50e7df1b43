"""Pooling over windows, and over whole planes."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.onnx.calls import Call, operator
from certood.onnx.operators.windows import Window, read_window, torch_padding

MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _read(call: Call) -> tuple[Tensor, Window, bool]:
    x, kernel = call.tensor(0), call.required("kernel_shape")
    ceil = bool(call.attribute("ceil_mode", 0))
    if not 1 <= x.ndim - 2 <= 3:
        raise call.node.error(f"expected one to three spatial axes, found an input of {x.ndim} axes")
    return x, read_window(call, kernel, x.shape[2:], ceil=ceil), ceil


def _overhang(window: Window, spatial: list[int], *, ceil: bool) -> list[int]:
    """What must follow the padded input so that the last window, rounded up, is complete.

    A window that would begin in the padding after the input is left out, as in PyTorch and onnxruntime.
    """
    found = []
    for axis, size in enumerate(spatial):
        padded = size + window.before[axis] + window.after[axis]
        stride, extent = window.strides[axis], window.extents[axis]
        last = (padded - extent) // stride
        if ceil:
            last = -(-(padded - extent) // stride)
            if last * stride >= size + window.before[axis]:
                last -= 1
        found.append(max(0, last * stride + extent - padded))
    return found


@operator("MaxPool")
def max_pool(call: Call) -> Tensor:
    """The largest value of each window; padding never wins."""
    x, window, ceil = _read(call)
    call.expect("storage_order", 0)
    rank, spatial = x.ndim - 2, [int(size) for size in x.shape[2:]]
    overhang = _overhang(window, spatial, ceil=ceil)
    padding = window.before
    after = tuple(size + more for size, more in zip(window.after, overhang, strict=True))
    if window.before != after or any(2 * pad > size for pad, size in zip(padding, window.kernel, strict=True)):
        x, padding = F.pad(x, torch_padding(window.before, after), value=-math.inf), (0,) * rank
    return MAX[rank](x, window.kernel, window.strides, padding, window.dilations)


@operator("AveragePool")
def average_pool(call: Call) -> Tensor:
    """The mean of each window, over what of it lies in the input or, with `count_include_pad`, in the padded input."""
    x, window, ceil = _read(call)
    include = bool(call.attribute("count_include_pad", 0))
    rank, spatial = x.ndim - 2, [int(size) for size in x.shape[2:]]
    overhang = _overhang(window, spatial, ceil=ceil)
    plain = set(window.dilations) == {1} and not any(overhang) and window.symmetric
    if (
        plain
        and (include or not any(window.before))
        and all(2 * pad <= size for pad, size in zip(window.before, window.kernel, strict=True))
    ):
        return AVERAGE[rank](x, window.kernel, window.strides, window.before, False, True)
    counted = torch.ones(1, 1, *spatial, dtype=x.dtype, device=x.device)
    if include:
        counted = F.pad(counted, torch_padding(window.before, window.after), value=1.0)
    after = [size + more for size, more in zip(window.after, overhang, strict=True)]
    x = F.pad(x, torch_padding(window.before, after))
    counted = F.pad(counted, torch_padding([0] * rank, overhang) if include else torch_padding(window.before, after))
    return _mean(x, window) / _mean(counted, window)


def _mean(x: Tensor, window: Window) -> Tensor:
    """The mean over complete windows of an input that is padded already."""
    rank = x.ndim - 2
    if set(window.dilations) == {1}:
        return AVERAGE[rank](x, window.kernel, window.strides)
    channels = int(x.shape[1])
    weight = torch.full((channels, 1, *window.kernel), 1 / math.prod(window.kernel), dtype=x.dtype, device=x.device)
    return CONVOLUTIONS[rank](x, weight, None, window.strides, 0, window.dilations, channels)


@operator("GlobalAveragePool")
def global_average_pool(call: Call) -> Tensor:
    """The mean of each plane, its axes kept."""
    x = call.tensor(0)
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call) -> Tensor:
    """The largest value of each plane, its axes kept."""
    x = call.tensor(0)
    return x.amax(list(range(2, x.ndim)), keepdim=True)
