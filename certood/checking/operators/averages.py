"""Averages over windows and planes: an exact sum, and one division."""

import math

import numpy as np

from certood.checking.network import Shape
from certood.checking.operators.layers import convolution_matrix, linear
from certood.checking.reading import Node, Reading, Unchecked, Value, reader, require_small
from certood.checking.steps import Array, Scale


@reader("AveragePool")
def average_pool(reading: Reading, node: Node) -> Value:
    """Over windows in two dimensions; padding is counted, or not."""
    node.require(auto_pad=b"NOTSET", ceil_mode=0)
    given, window = reading.activation(node), node.take("kernel_shape", ())
    if len(given.shape) != 4 or len(window) != 2:
        raise Unchecked("expected an average over windows in two dimensions")
    counted = bool(node.take("count_include_pad", 0))
    channels = given.shape[1]
    require_small(channels, *window)
    weight, plane = convolution_matrix(
        np.ones((channels, 1, *window)),
        given.shape[1:],
        node.take("strides", (1, 1)),
        node.take("pads", (0, 0, 0, 0)),
        node.take("dilations", (1, 1)),
        channels,
    )
    count = np.full(len(weight), float(math.prod(window))) if counted else weight.sum(1)
    return _average(reading, node, given, weight, count, (1, channels, *plane))


@reader("GlobalAveragePool")
def global_average_pool(reading: Reading, node: Node) -> Value:
    """Over the whole plane of every channel."""
    given = reading.activation(node)
    return _mean(reading, node, given, tuple(range(2, len(given.shape))), keep=True)


@reader("ReduceMean")
def reduce_mean(reading: Reading, node: Node) -> Value:
    """Over axes, of which the images are none."""
    given, chosen = reading.activation(node), reading.whole_numbers(node, 1, "axes")
    node.require(noop_with_empty_axes=0)
    count = len(given.shape)
    axes = tuple(axis % count for axis in chosen or () if -count <= axis < count)
    if not axes or 0 in axes or len(set(axes)) != len(chosen or ()):
        raise Unchecked(f"expected a mean over axes of the images, found {chosen}")
    return _mean(reading, node, given, axes, keep=bool(node.take("keepdims", 1)))


def _mean(reading: Reading, node: Node, given: Value, axes: tuple[int, ...], *, keep: bool) -> Value:
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(given.shape))
    outputs, inputs = math.prod(kept), given.size
    require_small(outputs, inputs)
    into = np.broadcast_to(np.arange(outputs).reshape(kept), given.shape).ravel()
    weight = np.zeros((outputs, inputs))
    weight[into, np.arange(inputs)] = 1.0
    shape = kept if keep else tuple(size for axis, size in enumerate(given.shape) if axis not in axes)
    return _average(reading, node, given, weight, weight.sum(1), shape)


def _average(reading: Reading, node: Node, given: Value, weight: Array, count: Array, shape: Shape) -> Value:
    if not count.all():
        raise Unchecked("a window lies wholly in the padding")
    total = linear(reading, given, weight, np.zeros(len(weight)), shape, f"{node.output}/total")
    return reading.step(Scale(count, divide=True), total, shape=shape, name=node.output)
