"""Piecewise linear activations, put together of ReLU: all that bends is a ReLU, and has slopes.

|x| = relu(x) + relu(−x), max(x, c) = relu(x − c) + c, min(x, c) = c − relu(c − x), the leaky one is α·x + (1 − α)·relu(x), and
the largest of a window is found pair by pair, by max(a, b) = a + relu(b − a).
"""

import itertools
from fractions import Fraction

import numpy as np

from certood.checking.operators.layers import activation_and_constant, added, negated, windows_in
from certood.checking.reading import Constant, Node, Reading, Unchecked, Value, expanded, reader
from certood.checking.steps import Relu, Scale, Select, Shift


@reader("Relu")
def relu(reading: Reading, node: Node) -> Value:
    """max(x, 0)."""
    given = reading.activation(node)
    return reading.step(Relu(), given, shape=given.shape, name=node.output)


@reader("Abs")
def absolute(reading: Reading, node: Node) -> Value:
    """|x|."""
    given = reading.activation(node)
    other = negated(reading, given, f"{node.output}/negated")
    positive = reading.step(Relu(), given, shape=given.shape, name=f"{node.output}/positive")
    negative = reading.step(Relu(), other, shape=given.shape, name=f"{node.output}/negative")
    return added(reading, positive, negative, node.output)


@reader("LeakyRelu")
def leaky_relu(reading: Reading, node: Node) -> Value:
    """x where that is positive, α·x elsewhere."""
    given, slope = reading.activation(node), float(node.take("alpha", np.float32(0.01)))
    rest = 1 - slope
    if not (0 <= slope <= 1 and Fraction(slope) + Fraction(rest) == 1):
        raise Unchecked(f"expected a slope from 0 to 1, of few digits, found {slope}")
    bent = reading.step(Relu(), given, shape=given.shape, name=node.output)
    bent = reading.step(Scale(np.full(given.size, rest)), bent, shape=given.shape, name=f"{node.output}/bent")
    line = reading.step(Scale(np.full(given.size, slope)), given, shape=given.shape, name=f"{node.output}/line")
    return added(reading, line, bent, f"{node.output}/sum")


@reader("Clip")
def clip(reading: Reading, node: Node) -> Value:
    """min(max(x, least), most), where both or one are given."""
    given, least, most = reading.activation(node), reading.constant(node, 1), reading.constant(node, 2)
    if least is not None:
        given = _at_least(reading, node, given, least)
    return given if most is None else _at_most(reading, node, given, most)


@reader("Max")
def maximum(reading: Reading, node: Node) -> Value:
    """max(x, c)."""
    _require_two(node)
    _, given, constant = activation_and_constant(reading, node)
    return _at_least(reading, node, given, constant)


@reader("Min")
def minimum(reading: Reading, node: Node) -> Value:
    """min(x, c)."""
    _require_two(node)
    _, given, constant = activation_and_constant(reading, node)
    return _at_most(reading, node, given, constant)


def _require_two(node: Node) -> None:
    if len(node.inputs) != 2:
        raise Unchecked(f"expected {node.operator} of an activation and a constant, found {len(node.inputs)} inputs")


def _at_least(reading: Reading, node: Node, given: Value, least: Constant) -> Value:
    floor = _finite(expanded(least, given.shape), node)
    given = reading.step(Shift(-floor), given, shape=given.shape, name=f"{node.output}/above")
    given = reading.step(Relu(), given, shape=given.shape, name=f"{node.output}/least")
    return reading.step(Shift(floor), given, shape=given.shape, name=f"{node.output}/raised")


def _at_most(reading: Reading, node: Node, given: Value, most: Constant) -> Value:
    ceiling = _finite(expanded(most, given.shape), node)
    given = negated(reading, given, f"{node.output}/negated")
    given = reading.step(Shift(ceiling), given, shape=given.shape, name=f"{node.output}/below")
    given = reading.step(Relu(), given, shape=given.shape, name=f"{node.output}/most")
    given = negated(reading, given, f"{node.output}/back")
    return reading.step(Shift(ceiling), given, shape=given.shape, name=f"{node.output}/lowered")


def _finite(limit: Constant, node: Node) -> Constant:
    if not np.isfinite(limit).all():
        raise Unchecked(f"expected finite limits of {node.operator}")
    return limit


@reader("MaxPool")
def max_pool(reading: Reading, node: Node) -> Value:
    """The largest of every window in two dimensions, without padding."""
    node.require(auto_pad=b"NOTSET", ceil_mode=0, pads=[0, 0, 0, 0], storage_order=0)
    given, window = reading.activation(node), node.take("kernel_shape", ())
    strides, dilations = node.take("strides", (1, 1)), node.take("dilations", (1, 1))
    if len(given.shape) != 4 or len(window) != 2:
        raise Unchecked("expected a maximum over windows in two dimensions")
    plane = windows_in(given.shape[2:], window, strides, dilations, (0, 0, 0, 0))
    places, values = given.places, []
    for number, (j, i) in enumerate(itertools.product(*map(range, window))):
        above, left = j * dilations[0], i * dilations[1]
        taken = places[:, :, above :: strides[0], left :: strides[1]][:, :, : plane[0], : plane[1]]
        values.append(reading.step(Select(taken.ravel()), given, shape=taken.shape, name=f"{node.output}/{number}"))
    largest = values[0]
    for number, other in enumerate(values[1:], start=1):
        largest = _larger(reading, largest, other, f"{node.output}/{number}")
    return largest


def _larger(reading: Reading, one: Value, two: Value, name: str) -> Value:
    """max(a, b) = a + relu(b − a)."""
    more = added(reading, two, negated(reading, one, f"{name}/negated"), f"{name}/difference")
    more = reading.step(Relu(), more, shape=one.shape, name=f"{name}/more")
    return added(reading, one, more, f"{name}/largest")
