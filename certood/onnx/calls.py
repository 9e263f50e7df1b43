"""How an operator reads its node: every attribute and input through one object, which knows what has not been read."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from certood.errors import CheckpointError

# An integer that may be symbolic: torch.export stands a torch.SymInt for the number of images.
Size = int


@dataclass(frozen=True)
class Node:
    """A node of an ONNX graph: an operator of one operator set, its attributes, and the names of its values.

    An omitted input or output has the name "". Attributes are numbers, texts, tensors, or lists of them.
    """

    operator: str
    name: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.operator}, operator set {self.version})"

    def error(self, problem: str) -> CheckpointError:
        """An error that names this node."""
        return CheckpointError(f"ONNX {self}: {problem}")


@dataclass(frozen=True)
class Static:
    """An input that is known when the file is read: constant + slope · (number of images), element by element, flat."""

    shape: tuple[int, ...]
    constants: tuple[float, ...]
    slopes: tuple[int, ...]

    @property
    def follows_batch(self) -> bool:
        """Whether an element depends on the number of images."""
        return any(self.slopes)

    def at(self, batch: Size) -> list[Any]:
        """The elements for a number of images."""
        return [
            constant + slope * batch if slope else constant
            for constant, slope in zip(self.constants, self.slopes, strict=True)
        ]


@dataclass(frozen=True)
class ByImage:
    """A known input of integers with the images along `axis`: the elements of image n are `first` + n · `step`.

    `first` has the shape that the input has for one image.
    """

    axis: int
    first: Static
    step: int


@dataclass(frozen=True)
class BatchAxis:
    """The axis of a value along which the images lie: its size is `multiple` times their number.

    The images come first along it, or within each of `outer` parts.
    """

    axis: int
    multiple: int
    outer: int = 1


@dataclass
class Reads:
    """What an operator has read of its node, and, where it knows, the `BatchAxis.outer` of what it gives."""

    attributes: set[str] = field(default_factory=set)
    inputs: set[int] = field(default_factory=set)
    tensors: set[int] = field(default_factory=set)
    outer: int | None = None


@dataclass(frozen=True)
class Call:
    """One evaluation of a node: what an operator may ask for.

    `dtype` is the floating-point type in which the network is evaluated. `batch_axes` says where the images lie in an
    input, for inputs that have exactly one such axis. `static_of` gives the value of a known input, `by_image` that of one
    whose shape has the number of images.
    """

    node: Node
    values: Sequence[Tensor | None]
    batch: Size
    dtype: torch.dtype
    device: torch.device
    batch_axes: Mapping[int, BatchAxis]
    static_of: Callable[[int], Static | None]
    by_image: Callable[[int], ByImage | None]
    reads: Reads

    @property
    def version(self) -> int:
        """The operator set of the model."""
        return self.node.version

    def has(self, index: int) -> bool:
        """Whether this input is given."""
        self.reads.inputs.add(index)
        return index < len(self.node.inputs) and self.node.inputs[index] != ""

    def tensor(self, index: int) -> Tensor:
        """An input as a tensor; raises CheckpointError where it is missing."""
        found = self.optional(index)
        if found is None:
            raise self.node.error(f"input {index} is missing")
        return found

    def optional(self, index: int) -> Tensor | None:
        """An input as a tensor, or None where it is omitted."""
        if not self.has(index):
            return None
        self.reads.tensors.add(index)
        return self.values[index]

    def tensors(self) -> list[Tensor]:
        """All inputs."""
        return [self.tensor(index) for index in range(len(self.node.inputs))]

    def static(self, index: int) -> Static | None:
        """A known input, or None where it is omitted; raises CheckpointError where it depends on the image."""
        if not self.has(index):
            return None
        found = self.static_of(index)
        if found is None:
            raise self.node.error(
                f"input {index} ({self.node.inputs[index]!r}) depends on the image, which it may not here"
            )
        return found

    def sizes(self, index: int) -> list[Size] | None:
        """A known input of integers, flat; elements may depend on the number of images. None where it is omitted."""
        found = self.static(index)
        return (
            None if found is None else [int(size) if isinstance(size, float) else size for size in found.at(self.batch)]
        )

    def numbers(self, index: int) -> list[float] | None:
        """A known input of numbers, flat, the same for any number of images; None where it is omitted."""
        found = self.static(index)
        if found is None:
            return None
        if found.follows_batch:
            raise self.node.error(f"input {index} depends on the number of images, which it may not here")
        return list(found.constants)

    def number(self, index: int) -> float | None:
        """A known input of one number; None where it is omitted."""
        found = self.numbers(index)
        if found is None:
            return None
        if len(found) != 1:
            raise self.node.error(f"expected one number as input {index}, found {len(found)}")
        return found[0]

    def is_known(self, index: int) -> bool:
        """Whether an input is given and known when the file is read."""
        return self.has(index) and self.static_of(index) is not None

    def batch_axis(self, index: int) -> int | None:
        """The axis along which the images lie in an input, if there is exactly one."""
        found = self.batch_axes.get(index)
        return None if found is None else found.axis

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute, or its default; lists for lists. A number with a point is the nearest float32, as in a file."""
        self.reads.attributes.add(name)
        found = self.node.attributes.get(name, default)
        return struct.unpack("f", struct.pack("f", found))[0] if isinstance(found, float) else found

    def required(self, name: str) -> Any:
        """An attribute that must be given; raises CheckpointError where it is not."""
        found = self.attribute(name, None)
        if found is None:
            raise self.node.error(f"attribute {name!r} is missing")
        return found

    def expect(self, name: str, only: Any) -> None:
        """Read an attribute of which one value is supported, which is also its default; raises CheckpointError for others."""
        found = self.attribute(name, only)
        if found != only:
            raise self.node.error(f"attribute {name} = {found!r} is not supported ({only!r} is)")


Operator = Callable[[Call], Tensor | tuple[Tensor, ...]]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register the function of an ONNX operator, under one or several names."""

    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register
