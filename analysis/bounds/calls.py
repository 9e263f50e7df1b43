"""An ATen call under translation, which notes what a translator reads: an argument that nobody reads is never ignored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from certood.analysis.bounds.exporting import Step
from certood.analysis.bounds.graph import Node
from certood.analysis.bounds.layouts import Layout
from certood.analysis.bounds.operations import Operation
from certood.errors import UnsupportedOperation


@dataclass(frozen=True)
class Reference:
    """A value that depends on the image: the index of its node, and how the network lays it out."""

    index: int
    layout: Layout


@dataclass
class Call:
    """An ATen call: its arguments are numbers, tensors (constants), or `Reference`s to nodes.

    `layout` is that of its value. Translators ask for arguments by the names of the schema; what they do not ask for must be
    the schema's default. `precision` is an empty tensor in the dtype and on the device of the graph.
    """

    step: Step
    arguments: Mapping[str, Any]
    layout: Layout
    nodes: list[Node]
    precision: Tensor
    asked: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The operation."""
        return self.step.operation

    @property
    def shape(self) -> torch.Size:
        """The shape of the value for one image."""
        return self.layout.sample

    @property
    def inputs(self) -> list[Reference]:
        """Everything that depends on the image, in the order of the schema."""
        return references(list(self.arguments.values()))

    @property
    def source(self) -> Reference:
        """The one input."""
        (found,) = self.inputs
        return found

    def argument(self, name: str) -> Any:
        """An argument, which is thereby accounted for."""
        self.asked.add(name)
        return self.arguments[name]

    def optional(self, name: str, default: Any = None) -> Any:
        """An argument that not every overload has."""
        self.asked.add(name)
        return self.arguments.get(name, default)

    def constant(self, name: str) -> Tensor | None:
        """An argument that may not depend on the image, in the precision of the graph; None where it is not given."""
        value = self.argument(name)
        if isinstance(value, Reference):
            raise self.refusal(f"with {_called(name)} that depends on the image")
        return None if value is None else self.tensor(value)

    def required(self, name: str) -> Tensor:
        """A constant that is given."""
        found = self.constant(name)
        if found is None:
            raise self.refusal(f"without {_called(name)}")
        return found

    def operand(self, name: str) -> Tensor:
        """A constant that broadcasts against one image's part of the value."""
        return self.layout.constant(self.required(name))

    def tensor(self, value: Any) -> Tensor:
        """A number or tensor in the precision of the graph."""
        if isinstance(value, Tensor):
            return value.to(self.precision)
        return torch.full((), value, dtype=self.precision.dtype, device=self.precision.device)

    def ignored(self, *names: str) -> None:
        """Arguments that have no bearing on the value in eval mode."""
        self.asked.update(names)

    def axes(self, name: str) -> list[int]:
        """Axes of the input as axes of a sample; raises UnsupportedOperation for that of the batch."""
        value = self.argument(name)
        if value is None or value == []:
            raise self.refusal("over the batch axis")
        return [self.source.layout.sample_axis(axis) for axis in ([value] if isinstance(value, int) else value)]

    def on_batches(self) -> Callable[[Tensor], Tensor]:
        """The ATen operation itself as a function of (N, *sample), for a call with one input, its first argument."""
        given = dict(self.arguments)
        self.asked.update(given)
        first = next(iter(given))
        if not isinstance(given.pop(first), Reference) or references(list(given.values())):
            raise self.refusal("unless only its first argument depends on the image")
        keywords = {name: value for name, value in given.items() if name not in self.step.defaults or value is not None}
        function = partial(_called_with, self.step.target, first, keywords)
        before, after = self.source.layout, self.layout
        if before.is_plain and after.is_plain:
            return function
        return lambda samples: after.samples(function(before.batch(samples)))

    def append(self, operation: Operation, inputs: Sequence[Reference], layout: Layout | None = None) -> Reference:
        """A node of the graph; its layout is that of the value of the call unless another is given."""
        layout = self.layout if layout is None else layout
        places = tuple(part.index for part in inputs)
        self.nodes.append(Node(self.step.name, operation, places, layout.sample, self.step.source))
        return Reference(len(self.nodes) - 1, layout)

    def refusal(self, why: str) -> UnsupportedOperation:
        """The error of a translator."""
        return UnsupportedOperation(f"operation {self.step.target} is not supported {why}")

    def check_all_read(self) -> None:
        """Raise UnsupportedOperation for an argument that was not read and is not the default."""
        rest = iter(self.arguments.items())
        # What an operation is applied to is read by its node.
        next(rest)
        for name, value in rest:
            if name not in self.asked and not _same(value, self.step.defaults.get(name)):
                raise self.refusal(f"with the argument {name}={value!r}, which nothing here accounts for")


def references(arguments: Any) -> list[Reference]:
    """All references in an argument, in order."""
    if isinstance(arguments, Reference):
        return [arguments]
    if isinstance(arguments, (list, tuple)):
        return [found for part in arguments for found in references(part)]
    return []


def _called_with(target: Any, first: str, keywords: Mapping[str, Any], x: Tensor) -> Tensor:
    found: Tensor = target(**{first: x}, **keywords)
    return found


def _same(value: Any, default: Any) -> bool:
    if value is torch.float64:
        # The precision of the network itself.
        return default is None
    return type(value) is type(default) and not isinstance(value, (Tensor, Reference)) and bool(value == default)


def _called(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
