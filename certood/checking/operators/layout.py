"""Operators that put numbers elsewhere: shapes, parts, padding with zeros, concatenation."""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from certood.checking.operators.constants import joined, new_shape, slices, target_type
from certood.checking.reading import Node, Reading, Unchecked, Value, reader, require_small
from certood.checking.steps import Join, Select


def _selected(reading: Reading, given: Value, places: NDArray[np.int64], name: str) -> Value:
    """The numbers at these places, and 0 where one is −1; nothing is done where they stay where they are."""
    flat = places.ravel()
    if np.array_equal(flat, np.arange(given.size)):
        return Value(given.place, places.shape)
    return reading.step(Select(flat), given, shape=places.shape, name=name)


@reader("Identity")
def identity(reading: Reading, node: Node) -> Value:
    """The same."""
    return reading.activation(node)


@reader("Cast")
def cast(reading: Reading, node: Node) -> Value:
    """The same: to the type that activations have."""
    kind = target_type(node)
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
    given = reading.activation(node)
    node.take("allowzero", 0)
    return Value(given.place, given.places.reshape(new_shape(reading, node)).shape)


@reader("Squeeze")
def squeeze(reading: Reading, node: Node) -> Value:
    """Without axes of size 1."""
    given, axes = reading.activation(node), reading.whole_numbers(node, 1, "axes")
    if axes == []:
        raise Unchecked("expected axes of Squeeze, or none at all, found an empty list")
    return Value(given.place, np.squeeze(given.places, None if axes is None else tuple(axes)).shape)


@reader("Unsqueeze")
def unsqueeze(reading: Reading, node: Node) -> Value:
    """With axes of size 1."""
    given, axes = reading.activation(node), reading.whole_numbers(node, 1, "axes")
    if not axes:
        raise Unchecked("expected axes of Unsqueeze")
    return Value(given.place, np.expand_dims(given.places, tuple(axes)).shape)


@reader("Transpose")
def transpose(reading: Reading, node: Node) -> Value:
    """With its axes in another order."""
    given = reading.activation(node)
    return _selected(reading, given, given.places.transpose(node.take("perm", None)), node.output)


@reader("Slice")
def sliced(reading: Reading, node: Node) -> Value:
    """A part along some axes."""
    given = reading.activation(node)
    return _selected(reading, given, given.places[slices(reading, node, len(given.shape))], node.output)


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
    return _selected(reading, given, np.pad(given.places, widths, constant_values=-1), node.output)


@reader("Concat")
def concat(reading: Reading, node: Node) -> Value:
    """Activations one after the other along an axis."""
    parts = [reading.activation(node, index) for index in range(len(node.inputs))]
    starts = itertools.accumulate((part.size for part in parts), initial=0)
    places = joined([part.places + start for part, start in zip(parts, starts, strict=False)], node)
    whole = reading.step(Join(), *parts, shape=(places.size,), name=f"{node.output}/joined")
    return _selected(reading, whole, places, node.output)
