"""An ONNX file as steps that the checker knows, one after the other; anything else in it is refused by name."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certood.checking.steps import Array, Linear, Relu, Scale, Shift, Step, Sum
from certood.errors import CertoodError, CheckpointError

# Entries of a layer's matrix, above which a network is too large to be checked here.
MANY_ENTRIES = 50_000_000

Shape = tuple[int, ...]
Constant = NDArray[Any]


class Unchecked(CertoodError):
    """A network that the checker does not know how to bound."""


@dataclass(frozen=True)
class Placed:
    """A step of a network: its name in the file, and which earlier values it reads (0 is the image)."""

    name: str
    step: Step
    inputs: tuple[int, ...]


@dataclass
class Network:
    """A network from an image of `shape` (C, H, W) to logits (K,): value 0 is the image, value i + 1 that of step i."""

    shape: Shape
    steps: list[Placed] = field(default_factory=list)
    outputs: int = 0

    def value(self, image: Array) -> Array:
        """Logits (K,) of an image (C, H, W), rounded as they come."""
        found = [image.ravel().astype(np.float64)]
        for placed in self.steps:
            found.append(placed.step.value([found[source] for source in placed.inputs]))
        return found[-1]


def read_network(path: Path) -> Network:
    """The network in an ONNX file with one image as input and all weights in it.

    Raises CertoodError where the package onnx is missing, CheckpointError where the file cannot be read, Unchecked
    for an operator or form that is not known here.
    """
    try:
        import onnx  # noqa: PLC0415 (optional)
        from onnx import numpy_helper  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise CertoodError("ONNX files need the extra: pip install 'certood[onnx]'") from error
    try:
        graph = onnx.load(path).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except Exception as error:  # the parser's errors have no common base
        raise CheckpointError(f"{path} is not a readable ONNX file ({error})") from error
    try:
        return _read(graph, constants)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        raise Unchecked(f"{path} is put together in a way that the checker does not know ({error!r})") from error


def _read(graph: Any, constants: dict[str, Constant]) -> Network:
    entries = [given for given in graph.input if given.name not in constants]
    if len(entries) != 1 or len(graph.output) != 1:
        raise Unchecked(f"expected one input and one output, found {len(entries)} and {len(graph.output)}")
    entry = entries[0]
    shape = tuple(axis.dim_value for axis in entry.type.tensor_type.shape.dim)
    if len(shape) != 4 or shape[0] != 1:
        raise Unchecked(f"expected one image (1, C, H, W) as input, found {shape}")
    reading = _Reading(constants, {entry.name: (0, shape)}, Network(shape[1:]))
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise Unchecked(f"the checker knows ONNX's own operators, and not {node.op_type} of {node.domain!r}")
        reading.add(node)
    place, last = reading.known[graph.output[0].name]
    if place != len(reading.network.steps):
        raise Unchecked("expected the last step to give the output")
    reading.network.outputs = math.prod(last)
    return reading.network


@dataclass
class _Reading:
    """What is known so far: constants by name, and of every activation which value it is and its shape."""

    constants: dict[str, Constant]
    known: dict[str, tuple[int, Shape]]
    network: Network

    def add(self, node: Any) -> None:
        """Read the next node."""
        from onnx import helper  # noqa: PLC0415 (optional)

        attributes = {given.name: helper.get_attribute_value(given) for given in node.attribute}
        inputs = [name for name in node.input if name]
        if all(name in self.constants for name in inputs):
            self.constants[node.output[0]] = _constant(
                node.op_type, [self.constants[name] for name in inputs], attributes
            )
            return
        if node.op_type not in READERS:
            raise Unchecked(f"the checker knows {', '.join(sorted(READERS))}, and not {node.op_type}")
        step, sources, shape = READERS[node.op_type](self, inputs, attributes)
        if step is None:
            self.known[node.output[0]] = self.known[sources[0]][0], shape
            return
        places = tuple(self.known[name][0] for name in sources)
        self.network.steps.append(Placed(node.output[0], step, places))
        self.known[node.output[0]] = len(self.network.steps), shape

    def activation_and_constant(self, inputs: Sequence[str]) -> tuple[str, Shape, Constant]:
        """The activation among two inputs, its shape, and the other one."""
        (name,) = [given for given in inputs if given in self.known]
        (other,) = [given for given in inputs if given != name]
        return name, self.known[name][1], self.constants[other]


Read = tuple[Step | None, Sequence[str], Shape]
Reader = Callable[[_Reading, Sequence[str], dict[str, Any]], Read]
READERS: dict[str, Reader] = {}


def reader(name: str) -> Callable[[Reader], Reader]:
    """Register the function that reads an operator; it returns a step (None: the value stays), what it reads, and the shape."""

    def register(function: Reader) -> Reader:
        READERS[name] = function
        return function

    return register


def _constant(operator: str, inputs: Sequence[Constant], attributes: dict[str, Any]) -> Constant:
    """What operators on constants give, as far as exporters use them for shapes."""
    from onnx import numpy_helper  # noqa: PLC0415 (optional)

    if operator == "Constant" and "value" in attributes:
        return numpy_helper.to_array(attributes["value"])
    if operator == "Constant" and "value_ints" in attributes:
        return np.array(attributes["value_ints"])
    if operator == "Concat":
        return np.concatenate(list(inputs), axis=attributes["axis"])
    raise Unchecked(f"the checker does not know {operator} of constants")


def _expanded(constant: Constant, shape: Shape) -> Array:
    """A constant that broadcasts against an activation, flattened."""
    if np.broadcast_shapes(constant.shape, shape) != shape:
        raise Unchecked(f"expected a constant that broadcasts to {shape}, found {constant.shape}")
    return np.broadcast_to(constant.astype(np.float64), shape).ravel()


@reader("Add")
def _add(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    if all(name in reading.known for name in inputs):
        one, two = (reading.known[name][1] for name in inputs)
        if one != two:
            raise Unchecked(f"expected a sum of equal shapes, found {one} and {two}")
        return Sum(), inputs, one
    name, shape, constant = reading.activation_and_constant(inputs)
    return Shift(_expanded(constant, shape)), [name], shape


@reader("Sub")
def _sub(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    name, shape, constant = reading.activation_and_constant(inputs)
    if inputs[0] != name:
        raise Unchecked("expected a constant to be subtracted")
    return Shift(-_expanded(constant, shape)), [name], shape


@reader("Mul")
def _mul(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    name, shape, constant = reading.activation_and_constant(inputs)
    return Scale(_expanded(constant, shape)), [name], shape


@reader("Div")
def _div(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    name, shape, constant = reading.activation_and_constant(inputs)
    if inputs[0] != name or not constant.all():
        raise Unchecked("expected a division by a constant other than 0")
    return Scale(_expanded(constant, shape), divide=True), [name], shape


@reader("Relu")
def _relu(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    return Relu(), inputs, reading.known[inputs[0]][1]


@reader("Identity")
def _identity(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    return None, inputs, reading.known[inputs[0]][1]


@reader("Flatten")
def _flatten(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    shape, axis = reading.known[inputs[0]][1], attributes.get("axis", 1)
    return None, inputs, (math.prod(shape[:axis]), math.prod(shape[axis:]))


@reader("Reshape")
def _reshape(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    shape = reading.known[inputs[0]][1]
    wanted = [int(size) for size in reading.constants[inputs[1]]]
    if 0 in wanted:
        raise Unchecked("expected a shape without zeros")
    return None, inputs[:1], np.empty(shape, dtype=np.int8).reshape(wanted).shape


@reader("Gemm")
def _gemm(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    scales = attributes.get("alpha", 1.0), attributes.get("beta", 1.0), attributes.get("transA", 0)
    if scales != (1.0, 1.0, 0):
        raise Unchecked(f"expected Gemm with alpha 1, beta 1 and transA 0, found {scales}")
    weight = reading.constants[inputs[1]].astype(np.float64)
    weight = weight if attributes.get("transB", 0) else weight.T
    bias = _expanded(reading.constants[inputs[2]], (1, len(weight))) if len(inputs) > 2 else np.zeros(len(weight))
    return Linear(_allowed(weight), bias), inputs[:1], (1, len(weight))


@reader("MatMul")
def _matmul(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    name, shape, constant = reading.activation_and_constant(inputs)
    if inputs[0] != name or constant.ndim != 2 or len(shape) != 2:
        raise Unchecked("expected a vector times a constant matrix")
    weight = _allowed(constant.astype(np.float64).T)
    return Linear(weight, np.zeros(len(weight))), [name], (1, len(weight))


@reader("Conv")
def _conv(reading: _Reading, inputs: Sequence[str], attributes: dict[str, Any]) -> Read:
    kernel = reading.constants[inputs[1]].astype(np.float64)
    if kernel.ndim != 4 or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise Unchecked("expected a convolution in two dimensions with its padding in numbers")
    geometry = (
        attributes.get("strides", (1, 1)),
        attributes.get("pads", (0, 0, 0, 0)),
        attributes.get("dilations", (1, 1)),
        attributes.get("group", 1),
    )
    weight, plane = convolution_matrix(kernel, reading.known[inputs[0]][1][1:], *geometry)
    bias = reading.constants[inputs[2]].astype(np.float64) if len(inputs) > 2 else np.zeros(len(kernel))
    return Linear(weight, np.repeat(bias, math.prod(plane))), inputs[:1], (1, len(kernel), *plane)


def convolution_matrix(
    kernel: Array, shape: Shape, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], groups: int
) -> tuple[Array, Shape]:
    """The matrix (O·H'·W', C·H·W) of a convolution by `kernel` (O, C/groups, h, w), and H', W'.

    `pads` are those at the top, left, bottom and right.
    """
    outputs, depth, height, width = kernel.shape
    plane = tuple(
        (size + pads[axis] + pads[axis + 2] - dilations[axis] * (extent - 1) - 1) // strides[axis] + 1
        for axis, (size, extent) in enumerate(zip(shape[1:], (height, width), strict=True))
    )
    rows, columns = outputs * math.prod(plane), math.prod(shape)
    _require_small(rows, columns)
    matrix = np.zeros((outputs, *plane, *shape))
    block = outputs // groups
    for y, x, j, i in itertools.product(range(plane[0]), range(plane[1]), range(height), range(width)):
        above = y * strides[0] - pads[0] + j * dilations[0]
        left = x * strides[1] - pads[1] + i * dilations[1]
        if 0 <= above < shape[1] and 0 <= left < shape[2]:
            for group in range(groups):
                out, into = slice(group * block, (group + 1) * block), slice(group * depth, (group + 1) * depth)
                matrix[out, y, x, into, above, left] = kernel[out, :, j, i]
    return matrix.reshape(rows, columns), plane


def _allowed(matrix: Array) -> Array:
    _require_small(*matrix.shape)
    return np.ascontiguousarray(matrix)


def _require_small(rows: int, columns: int) -> None:
    if rows * columns > MANY_ENTRIES:
        raise Unchecked(
            f"a layer of {rows} × {columns} numbers is too large for this checker (at most {MANY_ENTRIES:,})"
        )
