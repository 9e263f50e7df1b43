"""Convolutions and transposed convolutions over one, two and three axes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.onnx.calls import Call, operator
from certood.onnx.operators.windows import read_window, torch_padding

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _operands(call: Call) -> tuple[Tensor, Tensor, Tensor | None, list[int]]:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    kernel = list(weight.shape[2:])
    given = call.attribute("kernel_shape", kernel)
    if given != kernel or x.ndim != weight.ndim or not 1 <= len(kernel) <= 3:
        raise call.node.error(
            f"kernel_shape {given} does not suit a weight of shape {tuple(weight.shape)} and an input of {x.ndim} axes"
        )
    return x, weight, bias, kernel


@operator("Conv")
def convolution(call: Call) -> Tensor:
    """Cross-correlation with a weight (K, C / groups, …); padding may differ before and after."""
    x, weight, bias, kernel = _operands(call)
    window = read_window(call, kernel, x.shape[2:])
    padding = window.before
    if not window.symmetric or min(padding) < 0:
        x = F.pad(x, torch_padding(window.before, window.after))
        padding = (0,) * len(kernel)
    return CONVOLUTIONS[len(kernel)](
        x, weight, bias, window.strides, padding, window.dilations, call.attribute("group", 1)
    )


@operator("ConvTranspose")
def transposed_convolution(call: Call) -> Tensor:
    """The transpose of a convolution with a weight (C, K / groups, …), cut by the padding."""
    x, weight, bias, kernel = _operands(call)
    rank, spatial = len(kernel), [int(size) for size in x.shape[2:]]
    strides, dilations = call.attribute("strides", [1] * rank), call.attribute("dilations", [1] * rank)
    extra, pads = call.attribute("output_padding", [0] * rank), call.attribute("pads", [0] * 2 * rank)
    wanted, automatic = call.attribute("output_shape", None), call.attribute("auto_pad", "NOTSET")
    groups = call.attribute("group", 1)
    full = [
        (size - 1) * stride + (width - 1) * dilation + 1 + more
        for size, stride, width, dilation, more in zip(spatial, strides, kernel, dilations, extra, strict=True)
    ]
    before, after = pads[:rank], pads[rank:]
    if automatic in ("SAME_UPPER", "SAME_LOWER") and wanted is None:
        wanted = [size * stride for size, stride in zip(spatial, strides, strict=True)]
    elif automatic == "VALID":
        before, after = [0] * rank, [0] * rank
    if wanted is not None:
        totals = [max(0, size - target) for size, target in zip(full, wanted[-rank:], strict=True)]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        before, after = (less, more) if automatic == "SAME_UPPER" else (more, less)
        extra = [
            padding + max(0, target - size) for padding, size, target in zip(extra, full, wanted[-rank:], strict=True)
        ]
    function = TRANSPOSED[rank]
    if before == after and all(
        more < max(stride, dilation) for more, stride, dilation in zip(extra, strides, dilations, strict=True)
    ):
        return function(x, weight, bias, strides, before, extra, groups, dilations)
    # What torch cannot do itself: padding that differs before and after, and a tail as long as a stride or longer.
    found = function(x, weight, None, strides, 0, 0, groups, dilations)
    tails = [more - cut for more, cut in zip(extra, after, strict=True)]
    found = F.pad(found, torch_padding([-cut for cut in before], tails))
    return found if bias is None else torch.add(found, bias.reshape(-1, *[1] * rank))
