"""Operators of constants, as far as exporters use them: for shapes, and for numbers in the type of an activation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from certood.checking.reading import Constant, Node, Reading, Unchecked, of_constants, require_small


@of_constants("Constant")
def constant(reading: Reading, node: Node) -> Constant:
    """A number, numbers, or a tensor."""
    from onnx import numpy_helper  # noqa: PLC0415 (optional)

    if "value" in node.attributes:
        return numpy_helper.to_array(node.take("value", None))
    for name, kind in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if name in node.attributes:
            return np.array(node.take(name, None), dtype=kind)
    raise Unchecked("the checker does not know this Constant")


@of_constants("Identity")
def identity(reading: Reading, node: Node) -> Constant:
    """The same."""
    return reading.required(node, 0)


@of_constants("Concat")
def concat(reading: Reading, node: Node) -> Constant:
    """One after the other along an axis."""
    return joined([reading.required(node, index) for index in range(len(node.inputs))], node)


@of_constants("Shape")
def shape(reading: Reading, node: Node) -> Constant:
    """Sizes of an activation or a constant."""
    name = node.input(0)
    found = reading.known[name].shape if name in reading.known else reading.constants[name].shape
    start, end = node.take("start", 0), node.take("end", len(found))
    return np.array(found[start:end], dtype=np.int64)


@of_constants("Expand")
def expand(reading: Reading, node: Node) -> Constant:
    """Broadcast to a shape."""
    given, sizes = reading.required(node, 0), tuple(reading.required(node, 1).tolist())
    wanted = np.broadcast_shapes(given.shape, sizes)
    require_small(*wanted)
    return np.broadcast_to(given, wanted)


@of_constants("Reshape")
def reshape(reading: Reading, node: Node) -> Constant:
    """The same numbers in another shape."""
    node.require(allowzero=0)
    return reading.required(node, 0).reshape(new_shape(reading, node))


@of_constants("Slice")
def sliced(reading: Reading, node: Node) -> Constant:
    """A part along some axes."""
    given = reading.required(node, 0)
    return given[slices(reading, node, given.ndim)]


@of_constants("Cast")
def cast(reading: Reading, node: Node) -> Constant:
    """The same numbers in another type."""
    return _converted(reading.required(node, 0), target_type(node))


@of_constants("CastLike")
def cast_like(reading: Reading, node: Node) -> Constant:
    """The same numbers in the type of a constant, or of the activations."""
    node.require(saturate=1, round_mode=b"up")
    name = node.input(1)
    like = reading.kind if name in reading.known else reading.constants[name].dtype
    return _converted(reading.required(node, 0), like)


def _converted(given: Constant, kind: np.dtype[Any]) -> Constant:
    if kind not in (np.float32, np.float64, np.int64, np.int32):
        raise Unchecked(f"the checker does not know constants of type {kind}")
    return given.astype(kind)


def joined(parts: Sequence[Constant], node: Node) -> Constant:
    """Arrays one after the other along the axis of a Concat."""
    axis = node.take("axis", None)
    if axis is None:
        raise Unchecked("expected an axis of Concat")
    require_small(sum(part.size for part in parts))
    return np.concatenate(parts, axis=axis)


def new_shape(reading: Reading, node: Node) -> list[int]:
    """The sizes that a Reshape gives, of which one may be −1."""
    sizes = [int(size) for size in reading.required(node, 1)]
    if min(sizes, default=0) < -1 or 0 in sizes:
        raise Unchecked(f"expected a shape of sizes, or −1, and without zeros, found {sizes}")
    return sizes


def target_type(node: Node) -> np.dtype[Any]:
    """The type that a Cast gives."""
    from onnx import helper  # noqa: PLC0415 (optional)

    node.require(saturate=1, round_mode=b"up")
    return helper.tensor_dtype_to_np_dtype(node.take("to", 0))


def slices(reading: Reading, node: Node, axes: int) -> tuple[slice, ...]:
    """What a Slice takes of every axis of a value with so many."""
    starts, ends = (reading.required(node, index).tolist() for index in (1, 2))
    chosen, steps = (reading.constant(node, index) for index in (3, 4))
    places = range(len(starts)) if chosen is None else chosen.tolist()
    found = [slice(None)] * axes
    for start, end, place, step in zip(
        starts, ends, places, [1] * len(starts) if steps is None else steps.tolist(), strict=True
    ):
        if step < 1:
            raise Unchecked(f"expected a Slice in steps of at least 1, found {step}")
        found[place] = slice(start, end, step)
    return tuple(found)
