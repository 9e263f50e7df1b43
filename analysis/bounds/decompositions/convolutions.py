"""Convolutions and pooling along one or three axes, and padding by name."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.decompositions.table import decomposes

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@decomposes("conv1d", "conv2d", "conv3d")
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Padding by name as numbers; along one axis as along two."""
    axes = weight.ndim - 2
    if isinstance(padding, str):
        spread = [dilation] * axes if isinstance(dilation, int) else list(dilation) * (axes // len(dilation))
        around = [size * (kernel - 1) for size, kernel in zip(spread, weight.shape[2:], strict=True)]
        around = around if padding == "same" else [0] * axes
        if any(total % 2 for total in around):
            # The odd one goes to the far end.
            x = F.pad(x, [part for total in reversed(around) for part in (total // 2, total - total // 2)])
            around = [0] * axes
        padding = [total // 2 for total in around]
        return CONVOLUTIONS[axes](x, weight, bias, stride, padding, dilation, groups)
    if axes != 1:
        return NotImplemented
    one = (0, *_each(padding)), (1, *_each(stride)), (1, *_each(dilation))
    found = F.conv2d(x.unsqueeze(2), weight.unsqueeze(2), bias, one[1], one[0], one[2], groups)
    return found.squeeze(2)


@decomposes("max_pool1d")
def max_pool1d(
    x: Tensor, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """As along two axes."""
    kernel = (1, *_each(kernel_size))
    step = (1, *_each(stride)) if stride not in ((), [], None) else kernel
    pooled = F.max_pool2d(x.unsqueeze(2), kernel, step, (0, *_each(padding)), (1, *_each(dilation)), ceil_mode)
    return pooled.squeeze(2)


@decomposes("max_pool3d")
def max_pool3d(
    x: Tensor, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """The largest of every plane, then of those along the depth."""
    kernel, pad, spread = (_each(size, 3) for size in (kernel_size, padding, dilation))
    step = _each(stride, 3) if stride not in ((), [], None) else kernel
    planes = F.max_pool2d(x.flatten(1, 2), kernel[1:], step[1:], pad[1:], spread[1:], ceil_mode)
    height, width = planes.shape[2:]
    columns = planes.unflatten(1, x.shape[1:3]).flatten(3)
    deep = F.max_pool2d(columns, (kernel[0], 1), (step[0], 1), (pad[0], 0), (spread[0], 1), ceil_mode)
    return deep.unflatten(3, (height, width))


def _each(size: int | Sequence[int], axes: int = 1) -> list[int]:
    """A size for every axis."""
    return [size] * axes if isinstance(size, int) else [*size] * (axes // len(size))
