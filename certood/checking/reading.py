"""What is known of an ONNX file while its nodes are read one after the other; a node that is not known is refused by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certood.checking.network import Network, Placed, Shape
from certood.checking.steps import Array, Step
from certood.errors import CertoodError

Constant = NDArray[Any]
# Entries of a matrix, or of anything else, above which a network is too large to be checked here.
MANY_ENTRIES = 50_000_000


class Unchecked(CertoodError):
    """A network that the checker does not know how to bound."""


class Value(NamedTuple):
    """Which value of the network an activation is, and its shape in the file."""

    place: int
    shape: Shape

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def places(self) -> NDArray[np.int64]:
        """Where each of its numbers stands, in its shape."""
        return np.arange(self.size, dtype=np.int64).reshape(self.shape)


@dataclass
class Node:
    """A node of the file: its operator, the names that it reads ("" where an input is left out), attributes, and its output.

    Attributes are taken one by one; one that nobody takes would change what the node means, so that it is refused.
    """

    operator: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]
    output: str

    def take(self, name: str, default: Any) -> Any:
        """An attribute, or the default where it is not given."""
        return self.attributes.pop(name, default)

    def require(self, **expected: Any) -> None:
        """Raise Unchecked unless these attributes have these values, or are not given."""
        for name, value in expected.items():
            found = self.take(name, value)
            if found != value:
                raise Unchecked(f"expected {self.operator} with {name} {value!r}, found {found!r}")

    def input(self, index: int) -> str:
        """The name of an input, "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


class Reading:
    """What is known so far of a file: constants by name, activations by name, and the network's steps."""

    def __init__(self, constants: dict[str, Constant], entry: str, shape: Shape, kind: np.dtype[Any]) -> None:
        self.constants = constants
        self.known = {entry: Value(0, shape)}
        self.kind = kind
        self.network = Network(shape[1:])
        self.names: set[str] = set()

    def add(self, node: Node) -> None:
        """Read the next node."""
        if node.output in self.known or node.output in self.constants:
            raise Unchecked(f"two values are called {node.output!r}")
        read = node.inputs[: VALUES_READ.get(node.operator)]
        if all(name in self.constants for name in read if name):
            if node.operator not in CONSTANTS:
                raise Unchecked(f"the checker does not know {node.operator} of constants")
            self.constants[node.output] = CONSTANTS[node.operator](self, node)
        elif node.operator not in READERS:
            raise Unchecked(f"the checker knows {', '.join(sorted(READERS))}, and not {node.operator}")
        else:
            self.known[node.output] = READERS[node.operator](self, node)
        if node.attributes:
            raise Unchecked(f"the checker does not know {', '.join(sorted(node.attributes))} of {node.operator}")

    def step(self, step: Step, *sources: Value, shape: Shape, name: str) -> Value:
        """The value of a step that reads these values; no other step has its name, by which a certificate has its slopes."""
        if name in self.names:
            raise Unchecked(f"two steps are called {name!r}")
        self.names.add(name)
        self.network.steps.append(Placed(name, step, tuple(source.place for source in sources)))
        return Value(len(self.network.steps), shape)

    def activation(self, node: Node, index: int = 0) -> Value:
        """An input that is an activation."""
        name = node.input(index)
        if name not in self.known:
            raise Unchecked(f"expected input {index} of {node.operator} to depend on the image")
        return self.known[name]

    def constant(self, node: Node, index: int) -> Constant | None:
        """An input that is a constant, None where it is left out."""
        name = node.input(index)
        if not name:
            return None
        if name not in self.constants:
            raise Unchecked(f"expected input {index} of {node.operator} to be a constant")
        return self.constants[name]

    def required(self, node: Node, index: int) -> Constant:
        """An input that is a constant."""
        found = self.constant(node, index)
        if found is None:
            raise Unchecked(f"input {index} of {node.operator} is missing")
        return found

    def whole_numbers(self, node: Node, index: int, attribute: str) -> list[int] | None:
        """Sizes or axes, as an input or, in older files, as an attribute; None where they are left out."""
        found = self.constant(node, index)
        given = node.take(attribute, None)
        if found is not None:
            given = np.atleast_1d(found).tolist()
        return None if given is None else [int(number) for number in given]


def require_small(*sizes: int) -> None:
    """Raise Unchecked for an array that is too large, before it is made."""
    if math.prod(sizes) > MANY_ENTRIES:
        shown = " × ".join(map(str, sizes))
        raise Unchecked(f"an array of {shown} numbers is too large for this checker (at most {MANY_ENTRIES:,})")


Reader = Callable[[Reading, Node], Value]
READERS: dict[str, Reader] = {}
Evaluation = Callable[[Reading, Node], Constant]
CONSTANTS: dict[str, Evaluation] = {}
# Of how many inputs an operator reads the values, where it is not all: it reads shape or type of the others.
VALUES_READ = {"Shape": 0, "CastLike": 1}


def reader(name: str) -> Callable[[Reader], Reader]:
    """Register the function that reads an operator of activations: it adds steps, and returns the value that they give."""

    def register(function: Reader) -> Reader:
        READERS[name] = function
        return function

    return register


def of_constants(name: str) -> Callable[[Evaluation], Evaluation]:
    """Register the function that evaluates an operator of constants."""

    def register(function: Evaluation) -> Evaluation:
        CONSTANTS[name] = function
        return function

    return register


def expanded(constant: Constant, shape: Shape) -> Array:
    """A constant that broadcasts against an activation, flattened."""
    require_small(*shape)
    if np.broadcast_shapes(constant.shape, shape) != shape:
        raise Unchecked(f"expected a constant that broadcasts to {shape}, found {constant.shape}")
    return np.broadcast_to(constant.astype(np.float64), shape).ravel()
