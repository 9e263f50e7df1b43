"""Linear maps by weights: matrices, convolutions, batch normalisation."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.calls import Call, Reference
from certood.analysis.bounds.operations import ChannelAffine, Convolution, Linear, Operation
from certood.analysis.bounds.operations.contraction import Contraction
from certood.analysis.bounds.operations.matrix_product import MatrixProduct
from certood.analysis.bounds.translation.table import Translator, check_plain, pair, translates


@translates("conv2d")
def convolution(call: Call) -> Operation:
    """Along two axes."""
    check_plain(call, 4)
    # Of names of paddings only "valid" is not decomposed.
    padding = 0 if call.argument("padding") == "valid" else call.arguments["padding"]
    stride, dilation = pair(call.argument("stride")), pair(call.argument("dilation"))
    weight, bias = call.required("weight"), call.constant("bias")
    return Convolution(weight, bias, stride, pair(padding), dilation, call.argument("groups"))


def _convolved(function: Callable[..., Tensor], *names: str) -> Translator:
    """Any other convolution."""

    def translate(call: Call) -> Operation:
        check_plain(call, 3, 4, 5)
        weight, bias = call.required("weight"), call.constant("bias")
        given = {name: call.argument(name) for name in ("stride", "padding", "dilation", "groups", *names)}
        given["padding"] = 0 if given["padding"] == "valid" else given["padding"]
        bias = None if bias is None else bias.view(-1, *[1] * (len(call.shape) - 1))
        return Contraction(lambda x, own: function(x, own, None, **given), weight, bias)

    return translate


translates("conv3d")(_convolved(F.conv3d))
translates("conv_transpose1d")(_convolved(F.conv_transpose1d, "output_padding"))
translates("conv_transpose2d")(_convolved(F.conv_transpose2d, "output_padding"))
translates("conv_transpose3d")(_convolved(F.conv_transpose3d, "output_padding"))


@translates("linear")
def linear(call: Call) -> Operation:
    """A matrix along the last axis."""
    if call.source.layout.axis == len(call.source.layout.shape) - 1:
        raise call.refusal("along the batch axis")
    return Linear(call.required("weight"), call.constant("bias"))


@translates("batch_norm", "_native_batch_norm_legit_no_training")
def batch_norm(call: Call) -> Operation:
    """Translate normalisation with stored statistics: a scale and a shift for every channel."""
    channels = call.source.layout.sample_axis(1)
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
    shape = [-1 if axis == channels else 1 for axis in range(len(call.shape))]
    return ChannelAffine(scale.view(shape), shift.view(shape))


@translates("matmul")
def matmul(call: Call) -> Operation:
    """A product of two activations, or of one with a constant matrix or tensor on either side."""
    one, two = call.argument("self"), call.argument("other")
    rank = len(call.layout.shape)
    if call.layout.axis >= rank - 2 and not (
        isinstance(two, Tensor) and two.ndim == 2 and call.layout.axis == rank - 2
    ):
        raise call.refusal("along the batch axis")
    if isinstance(one, Reference) and isinstance(two, Reference):
        shapes = one.layout.sample, two.layout.sample
        if shapes[0][:-2] != shapes[1][:-2]:
            raise call.refusal("of two activations where axes before the matrices are broadcast")
        return MatrixProduct()
    if isinstance(one, Reference) and two.ndim == 2:
        return Linear(call.required("other").T.contiguous(), None)
    name = "other" if isinstance(one, Reference) else "self"
    weight = call.source.layout.constant(call.required(name))
    return Contraction(torch.matmul if name == "other" else _reversed_product, weight)


def _reversed_product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(weight, x)
