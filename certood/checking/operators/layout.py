"""Operators that put numbers elsewhere: shapes, parts, padding with zeros, concatenation."""

import math

import numpy as np
from numpy.typing import NDArray

from certood.checking.operators.constants import slices
from certood.checking.reading import Node, Reading, Unchecked, Value, reader, require_small
from certood.checking.steps import Join, Select


def _places(given: Value) -> NDArray[np.int64]:
    """Where each number of an activation stands, in its shape."""
    return np.arange(math.prod(given.shape), dtype=np.int64).reshape(given.shape)


def _selected(reading: Reading, given: Value, places: NDArray[np.int64], name: str) -> Value:
    """The numbers at these places, and 0 where one is −1; nothing is done where they stay where they are."""
    flat = places.ravel()
    if np.array_equal(flat, np.arange(math.prod(given.shape))):
        return Value(given.place, places.shape)
    return reading.step(Select(flat), given, shape=places.shape, name=name)


@reader("Identity")
def identity(reading: Reading, node: Node) -> Value:
    """The same."""
    return reading.activation(node)


@reader("Cast")
def cast(reading: Reading, node: Node) -> Value:
    """The same: to the type that activations have."""
    from onnx import helper  # noqa: PLC0415 (optional)

    node.require(saturate=1, round_mode=b"up")
    kind = helper.tensor_dtype_to_np_dtype(node.take("to", 0))
    if kind != reading.kind:
        raise Unchecked(f"expected activations to stay {reading.kind}, found a cast to {kind}")
    return reading.activation(node)


@reader("Flatten")
def flatten(reading: Reading, node: Node) -> Value:
    """As a matrix."""
    given, axis = reading.activation(node), node.take("axis", 1)
    return Value(given.place, (math.prod(given.shape[:axis]), math.prod(given.shape[axis:])))


@reader("Reshape")
def reshape(reading: Reading, node: Node) -> Value:
    """In another shape."""
    given, wanted = reading.activation(node), [int(size) for size in reading.required(node, 1)]
    if min(wanted, default=0) < -1 or 0 in wanted:
        raise Unchecked(f"expected a shape of sizes, or −1, and without zeros, found {wanted}")
    node.take("allowzero", 0)
    return Value(given.place, _places(given).reshape(wanted).shape)


@reader("Squeeze")
def squeeze(reading: Reading, node: Node) -> Value:
    """Without axes of size 1."""
    given, axes = reading.activation(node), reading.whole_numbers(node, 1, "axes")
    if axes == []:
        raise Unchecked("expected axes of Squeeze, or none at all, found an empty list")
    return Value(given.place, np.squeeze(_places(given), None if axes is None else tuple(axes)).shape)


@reader("Unsqueeze")
def unsqueeze(reading: Reading, node: Node) -> Value:
    """With axes of size 1."""
    given, axes = reading.activation(node), reading.whole_numbers(node, 1, "axes")
    if not axes:
        raise Unchecked("expected axes of Unsqueeze")
    return Value(given.place, np.expand_dims(_places(given), tuple(axes)).shape)


@reader("Transpose")
def transpose(reading: Reading, node: Node) -> Value:
    """With its axes in another order."""
    given = reading.activation(node)
    return _selected(reading, given, _places(given).transpose(node.take("perm", None)), node.output)


@reader("Slice")
def sliced(reading: Reading, node: Node) -> Value:
    """A part along some axes."""
    given = reading.activation(node)
    return _selected(reading, given, _places(given)[slices(reading, node, len(given.shape))], node.output)


@reader("Pad")
def pad(reading: Reading, node: Node) -> Value:
    """With zeros."""
    node.require(mode=b"constant")
    given, pads = reading.activation(node), reading.required(node, 1).tolist()
    value, chosen = reading.constant(node, 2), reading.constant(node, 3)
    axes = range(len(given.shape)) if chosen is None else chosen.tolist()
    if value is not None and np.any(value):
        raise Unchecked("expected zeros as padding")
    if min(pads, default=0) < 0 or len(pads) != 2 * len(axes):
        raise Unchecked(f"expected two pads of at least 0 for each of {len(axes)} axes, found {pads}")
    widths = [(0, 0)] * len(given.shape)
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(axes)])
    require_small(*(size + sum(width) for size, width in zip(given.shape, widths, strict=True)))
    return _selected(reading, given, np.pad(_places(given), widths, constant_values=-1), node.output)


@reader("Concat")
def concat(reading: Reading, node: Node) -> Value:
    """Activations one after the other along an axis."""
    parts = [reading.activation(node, index) for index in range(len(node.inputs))]
    axis = node.take("axis", None)
    if axis is None:
        raise Unchecked("expected an axis of Concat")
    require_small(sum(math.prod(part.shape) for part in parts))
    ends = np.cumsum([0, *(math.prod(part.shape) for part in parts)])
    places = np.concatenate([_places(part) + start for part, start in zip(parts, ends, strict=False)], axis=axis)
    joined = reading.step(Join(), *parts, shape=(int(ends[-1]),), name=f"{node.output}/joined")
    return _selected(reading, joined, places, node.output)
