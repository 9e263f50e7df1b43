"""Pooling."""

import math

from certood.analysis.bounds.calls import Call
from certood.analysis.bounds.operations import Maximum, MaxPool, Monotone, Operation
from certood.analysis.bounds.translation.table import check_plain, pair, translates


@translates("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average_pool(call: Call) -> Operation:
    """Windows may overlap, so that an input enters several."""
    check_plain(call, 3, 4, 5)
    kernel = call.argument("kernel_size")
    axes = len(call.shape) - 1
    return Monotone(call.on_batches(), math.prod([kernel] * axes if isinstance(kernel, int) else kernel))


@translates("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_average(call: Call) -> Operation:
    """Windows overlap where sizes do not divide."""
    check_plain(call, 3, 4, 5)
    return Monotone(call.on_batches())


@translates("max_pool2d", "max_pool2d_with_indices")
def max_pool(call: Call) -> Operation:
    """Along two axes."""
    check_plain(call, 4)
    kernel = pair(call.argument("kernel_size"))
    stride = pair(call.argument("stride") or kernel)
    padding, dilation = pair(call.argument("padding")), pair(call.argument("dilation"))
    return MaxPool(kernel, stride, padding, dilation, bool(call.argument("ceil_mode")))


@translates("adaptive_max_pool2d")
def adaptive_max_pool(call: Call) -> Operation:
    """Where sizes divide."""
    check_plain(call, 4)
    given = call.source.layout.sample
    size = pair(call.argument("output_size"))
    if size == (1, 1):
        return Maximum([1, 2], call.shape)
    if given[1] % size[0] or given[2] % size[1]:
        raise call.refusal(f"from {tuple(given[1:])} to {size}, which does not divide it")
    kernel = given[1] // size[0], given[2] // size[1]
    return MaxPool(kernel, kernel, (0, 0), (1, 1), ceil=False)
