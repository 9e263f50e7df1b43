"""Sums, products with constants, linear layers, convolutions, and batch normalisation of a trained network."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from certood.checking.network import Shape
from certood.checking.reading import Constant, Node, Reading, Unchecked, Value, expanded, reader, require_small
from certood.checking.steps import Array, Linear, Scale, Shift, Sum

# By how much the root of a sum may be off, relative to it: two roundings, of which the root halves the first.
OF_A_ROOT = 2 * 2.0**-53


def activation_and_constant(reading: Reading, node: Node) -> tuple[int, Value, Constant]:
    """The place of the activation among two inputs, the activation, and the constant."""
    (index,) = [place for place, name in enumerate(node.inputs) if name in reading.known]
    return index, reading.activation(node, index), reading.required(node, 1 - index)


@reader("Add")
def add(reading: Reading, node: Node) -> Value:
    """Of two activations, or of one and a constant."""
    if all(name in reading.known for name in node.inputs):
        return added(reading, reading.activation(node, 0), reading.activation(node, 1), node.output)
    _, given, constant = activation_and_constant(reading, node)
    return reading.step(Shift(expanded(constant, given.shape)), given, shape=given.shape, name=node.output)


@reader("Sub")
def subtract(reading: Reading, node: Node) -> Value:
    """Of two activations, or of one and a constant."""
    if all(name in reading.known for name in node.inputs):
        other = negated(reading, reading.activation(node, 1), f"{node.output}/negated")
        return added(reading, reading.activation(node, 0), other, node.output)
    index, given, constant = activation_and_constant(reading, node)
    shift = expanded(constant, given.shape)
    if index == 1:
        given, shift = negated(reading, given, f"{node.output}/negated"), -shift
    return reading.step(Shift(-shift), given, shape=given.shape, name=node.output)


@reader("Neg")
def negate(reading: Reading, node: Node) -> Value:
    """−x."""
    return negated(reading, reading.activation(node), node.output)


def negated(reading: Reading, given: Value, name: str) -> Value:
    """−x."""
    return reading.step(Scale(np.full(given.size, -1.0)), given, shape=given.shape, name=name)


def added(reading: Reading, one: Value, two: Value, name: str) -> Value:
    """The sum of two activations of one shape."""
    if one.shape != two.shape:
        raise Unchecked(f"expected a sum of equal shapes, found {one.shape} and {two.shape}")
    return reading.step(Sum(), one, two, shape=one.shape, name=name)


@reader("Mul")
def multiply(reading: Reading, node: Node) -> Value:
    """By a constant."""
    _, given, constant = activation_and_constant(reading, node)
    return reading.step(Scale(expanded(constant, given.shape)), given, shape=given.shape, name=node.output)


@reader("Div")
def divide(reading: Reading, node: Node) -> Value:
    """By a constant."""
    index, given, constant = activation_and_constant(reading, node)
    if index != 0 or not constant.all():
        raise Unchecked("expected a division by a constant other than 0")
    step = Scale(expanded(constant, given.shape), divide=True)
    return reading.step(step, given, shape=given.shape, name=node.output)


@reader("BatchNormalization")
def batch_normalisation(reading: Reading, node: Node) -> Value:
    """(x − μ)/√(σ² + ε)·γ + β of every channel; the root is irrational, so that its rounding is counted."""
    node.require(training_mode=0)
    node.take("momentum", None)
    given, epsilon = reading.activation(node), float(node.take("epsilon", np.float32(1e-5)))
    channel = (1, -1, *[1] * (len(given.shape) - 2))
    scale, bias, mean, variance = (
        expanded(reading.required(node, index).astype(np.float64).reshape(channel), given.shape)
        for index in range(1, 5)
    )
    if not bool((variance + epsilon > 0).all()):
        raise Unchecked("expected variances above 0")
    root = Scale(np.sqrt(variance + epsilon), divide=True, doubt=OF_A_ROOT)
    for part, step in (("centred", Shift(-mean)), ("unit", root), ("scaled", Scale(scale)), ("shifted", Shift(bias))):
        given = reading.step(step, given, shape=given.shape, name=f"{node.output}/{part}")
    return given


@reader("Gemm")
def gemm(reading: Reading, node: Node) -> Value:
    """A vector through a constant matrix."""
    node.require(alpha=1.0, beta=1.0, transA=0)
    given, weight = reading.activation(node), _matrix(reading.required(node, 1))
    weight = weight if node.take("transB", 0) else weight.T
    given_bias = reading.constant(node, 2)
    bias = np.zeros(len(weight)) if given_bias is None else expanded(given_bias, (1, len(weight)))
    return linear(reading, given, weight, bias, (1, len(weight)), node.output)


@reader("MatMul")
def matmul(reading: Reading, node: Node) -> Value:
    """A vector times a constant matrix."""
    index, given, constant = activation_and_constant(reading, node)
    if index != 0 or len(given.shape) != 2:
        raise Unchecked("expected a vector times a constant matrix")
    weight = _matrix(constant).T
    return linear(reading, given, weight, np.zeros(len(weight)), (1, len(weight)), node.output)


def _matrix(constant: Constant) -> Array:
    if constant.ndim != 2:
        raise Unchecked(f"expected a constant matrix, found one of shape {constant.shape}")
    require_small(*constant.shape)
    return constant.astype(np.float64)


@reader("Conv")
def conv(reading: Reading, node: Node) -> Value:
    """A convolution in two dimensions, as a matrix."""
    node.require(auto_pad=b"NOTSET")
    given, kernel = reading.activation(node), reading.required(node, 1)
    require_small(*kernel.shape)
    kernel = kernel.astype(np.float64)
    if kernel.ndim != 4 or len(given.shape) != 4:
        raise Unchecked("expected a convolution in two dimensions")
    node.require(kernel_shape=list(kernel.shape[2:]))
    geometry = (
        node.take("strides", (1, 1)),
        node.take("pads", (0, 0, 0, 0)),
        node.take("dilations", (1, 1)),
        node.take("group", 1),
    )
    weight, plane = convolution_matrix(kernel, given.shape[1:], *geometry)
    given_bias = reading.constant(node, 2)
    bias = np.zeros(len(kernel)) if given_bias is None else given_bias.astype(np.float64)
    if bias.shape != (len(kernel),):
        raise Unchecked(f"expected a bias for each of {len(kernel)} channels, found {bias.shape}")
    bias = np.repeat(bias, math.prod(plane))
    return linear(reading, given, weight, bias, (1, len(kernel), *plane), node.output)


def linear(reading: Reading, given: Value, weight: Array, bias: Array, shape: Shape, name: str) -> Value:
    """Wx + b of all numbers of an activation, in a shape."""
    if weight.shape[1] != given.size:
        raise Unchecked(f"expected a matrix for {given.size} numbers, found {weight.shape}")
    return reading.step(Linear(np.ascontiguousarray(weight), bias), given, shape=shape, name=name)


def windows_in(
    plane: Shape, window: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> Shape:
    """How many windows lie in a plane (H, W), along each axis; `pads` are those at the top, left, bottom and right."""
    if min(*window, *strides, *dilations) < 1 or min(pads) < 0:
        raise Unchecked(
            f"expected windows, steps and pads in the plane, windows and steps of at least 1, found {tuple(window)}, "
            f"{strides}, {dilations}, {pads}"
        )
    found = tuple(
        (size + pads[axis] + pads[axis + 2] - dilations[axis] * (extent - 1) - 1) // strides[axis] + 1
        for axis, (size, extent) in enumerate(zip(plane, window, strict=True))
    )
    if min(found) < 1:
        raise Unchecked(f"a window of {tuple(window)} does not fit into {plane}")
    return found


def convolution_matrix(
    kernel: Array, shape: Shape, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], groups: int
) -> tuple[Array, Shape]:
    """The matrix (O·H'·W', C·H·W) of a convolution by `kernel` (O, C/groups, h, w), and H', W'.

    `pads` are those at the top, left, bottom and right.
    """
    outputs, depth, height, width = kernel.shape
    if outputs % groups or depth * groups != shape[0]:
        raise Unchecked(f"a kernel of shape {kernel.shape} in {groups} groups does not suit {shape[0]} channels")
    if min(outputs, depth, groups) < 1:
        raise Unchecked(f"expected a kernel with channels, in groups, found {kernel.shape} in {groups}")
    plane = windows_in(shape[1:], (height, width), strides, dilations, pads)
    rows, columns = outputs * math.prod(plane), math.prod(shape)
    require_small(rows, columns)
    matrix = np.zeros((outputs, *plane, *shape))
    block = outputs // groups
    vertical = list(_covered(shape[1], height, plane[0], strides[0], pads[0], dilations[0]))
    horizontal = list(_covered(shape[2], width, plane[1], strides[1], pads[1], dilations[1]))
    for (y, j, above), (x, i, left) in itertools.product(vertical, horizontal):
        for group in range(groups):
            out, into = slice(group * block, (group + 1) * block), slice(group * depth, (group + 1) * depth)
            matrix[out, y, x, into, above, left] = kernel[out, :, j, i]
    return matrix.reshape(rows, columns), plane


def _covered(
    size: int, window: int, windows: int, stride: int, pad: int, dilation: int
) -> Iterator[tuple[int, int, int]]:
    """Every window, place in it, and the pixel there, of so many in one dimension; places in the padding are left out."""
    for number in range(windows):
        start = number * stride - pad
        # The first place at or after pixel 0, and the last before the end.
        for place in range(max(0, -(start // dilation)), min(window, (size - 1 - start) // dilation + 1)):
            yield number, place, start + place * dilation
