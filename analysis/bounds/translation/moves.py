"""Moving numbers: reshaping, slicing, joining, padding, resampling."""

import math

import torch
from torch import Tensor

from certood.analysis.bounds.calls import Call, Reference
from certood.analysis.bounds.exporting import RESHAPES
from certood.analysis.bounds.layouts import Layout
from certood.analysis.bounds.operations import Concatenation, Monotone, Operation, Reshape
from certood.analysis.bounds.operations.constant import Constant
from certood.analysis.bounds.translation.table import Translator, translates


@translates(*RESHAPES)
def reshaping(call: Call) -> Operation:
    """The layout of the value follows from its shape."""
    call.ignored("size", "shape", "start_dim", "end_dim", "dim", "sizes")
    return Reshape(call.shape)


@translates("permute")
def permutation(call: Call) -> Operation:
    """The batch axis may be moved, too."""
    before = call.source.layout
    dims = [axis % len(before.shape) for axis in call.argument("dims")]
    order = [0, *(1 + before.kept_axis(axis) for axis in dims if axis != before.axis or before.is_folded)]
    return Monotone(lambda x: x.permute(order), 0)


@translates("expand", "expand_as")
def expansion(call: Call) -> Operation:
    """Copies along axes of one element."""
    call.ignored("size", "other", "implicit")
    before = call.source.layout.sample
    lifted = [1] * (len(call.shape) - len(before)) + list(before)
    shape = call.shape

    def function(x: Tensor) -> Tensor:
        return x.reshape(len(x), *lifted).expand(len(x), *shape)

    return Monotone(function, math.prod(shape) // max(1, math.prod(before)))


def _moved(overlap: int | None = None) -> Translator:
    """A linear operation on its first argument without negative coefficients: the ATen operation itself."""
    return lambda call: Monotone(call.on_batches(), overlap)


# Every output is one input or zero, and no input enters two outputs.
translates("transpose", "slice", "select", "narrow", "flip", "roll", "diagonal", "tril", "triu", "t")(_moved(0))
translates("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")(_moved(0))
translates("index", "index_select", "cumsum", "unfold", "im2col")(_moved())
translates("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")(_moved())
translates("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")(_moved())
translates("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa")(_moved())


@translates("pad", "constant_pad_nd")
def padding(call: Call) -> Operation:
    """Translate padding with zeros, or with the values at the border; another value is decomposed."""
    sizes = [int(size) for size in call.argument("pad")]
    constant = call.optional("mode", "constant") == "constant"
    # A value at the border enters at most so many outputs.
    return Monotone(call.on_batches(), 0 if constant else math.prod(1 + max(size, 1) for size in sizes))


@translates("cat", "concat")
def concatenation(call: Call) -> Operation | Reference:
    """Translate the concatenation of activations and constants."""
    axis = call.layout.sample_axis(call.argument("dim"))
    image = Reference(0, Layout(torch.Size((1, *call.nodes[0].shape))))
    parts = []
    for part in call.arguments["tensors"]:
        if isinstance(part, Reference):
            parts.append(part)
            continue
        value = call.layout.constant(call.tensor(part))
        layout = Layout(part.shape, call.layout.axis, call.layout.outer, call.layout.inner)
        parts.append(call.append(Constant(value), [image], layout))
    return call.append(Concatenation(axis), parts)
