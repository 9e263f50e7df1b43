"""Linear operations: their value, their interval bounds, and their transpose applied to rows of coefficients.

Coefficients of a node are rows A of shape (N, R, *shape): R linear functions per image. `transpose` turns the coefficients
of an operation's output into those of its inputs; what is constant does not enter, as rows are of differences from a point.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.relaxations import Relaxation

Interval = tuple[Tensor, Tensor]
Rows = Tensor | Windows


class Operation(ABC):
    """An operation on batches; parameters are constants in float64."""

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""

    @abstractmethod
    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Bounds of the value for inputs in these boxes."""

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The size of the window of an input of shape `plane` that a window of the output reads; the whole plane if not known."""
        return plane[1:]


class LinearOperation(Operation):
    """An operation y = L(x₁, …) + b."""

    @abstractmethod
    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Rows (N, R, *input shape) of every input: those of Lᵀ, for rows (N, R, *output shape)."""

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> Sequence[Rows]:
        """What `transpose` gives, for rows that are windows; as whole planes unless the operation knows better."""
        return self.transpose(rows.dense(), shapes)

    def unit_rows(self, neurons: Tensor, shapes: Sequence[torch.Size], plane: torch.Size) -> Rows | None:
        """Rows of the one input that give single outputs (N, R) of a node of this shape; None where that is no shorter than
        `transpose`."""
        return None

    @abstractmethod
    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """For every input of these shapes the operation Lᵀ that maps a gradient with respect to y to one of that input."""


class Curved(Operation):
    """An operation that is not linear: bounds of its input decide how tight its relaxation is."""

    def unsettled(self, box: Interval) -> Tensor:
        """The inputs, by a mask (N, *shape), for which a tighter box would tighten the relaxation."""
        return box[0] < box[1]


class Elementwise(Curved):
    """A scalar operation on every element, relaxed by two lines each."""

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The same."""
        return size

    @abstractmethod
    def lines(self, lower: Tensor, upper: Tensor) -> Relaxation:
        """Two lines on the box (N, *shape)."""


class Input(Operation):
    """The image."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Never called: the image is given."""
        raise AssertionError("the input node has no inputs")

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Never called: the ball is given."""
        raise AssertionError("the input node has no inputs")


class Linear(LinearOperation):
    """y = Wx + b over the last axis."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias if bias is not None else weight.new_zeros(len(weight))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return F.linear(inputs[0], self.weight, self.bias)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centre and radius: |W| times the radius."""
        lower, upper = inputs[0]
        middle = F.linear((lower + upper) / 2, self.weight, self.bias)
        radius = F.linear((upper - lower) / 2, self.magnitude)
        return middle - radius, middle + radius

    @cached_property
    def magnitude(self) -> Tensor:
        """|W|."""
        return self.weight.abs()

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Wᵀ of the rows."""
        return [rows @ self.weight]

    def unit_rows(self, neurons: Tensor, shapes: Sequence[torch.Size], plane: torch.Size) -> Rows | None:
        """Rows of W."""
        if len(plane) != 1:
            return None
        return self.weight[neurons]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Wᵀ."""
        return [Linear(self.weight.T.contiguous(), None)]


class ChannelAffine(LinearOperation):
    """y = a·x + b with a and b that broadcast against one sample: batch normalisation, normalisation, scaling, shifting."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale, shift

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The same."""
        return size

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return inputs[0] * self.scale + self.shift

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Ends swap where the scale is negative."""
        one, two = (bound * self.scale + self.shift for bound in inputs[0])
        return torch.minimum(one, two), torch.maximum(one, two)

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """The rows, scaled, and summed over axes that were broadcast."""
        return [sum_to_shape(rows * self.scale, shapes[0])]

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> Sequence[Rows]:
        """The windows, scaled."""
        if shapes[0] != rows.plane:
            return self.transpose(rows.dense(), shapes)
        scale = self.scale.expand(len(rows.top), *rows.plane)
        if rows.covers:
            return [rows.scaled(rows.beside(scale))]
        return [replace(rows.scaled(rows.gather(rows.laid(scale))), clean=True)]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """The same scale, without the shift."""
        return [Broadcast(self.scale, shapes[0])]


class Broadcast(LinearOperation):
    """y = a·x, summed over the axes along which an input of `shape` had been broadcast: an adjoint of scaling."""

    def __init__(self, scale: Tensor, shape: torch.Size) -> None:
        self.scale, self.shape = scale, shape

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return sum_to_shape((inputs[0] * self.scale)[:, None], self.shape)[:, 0]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Ends swap where the scale is negative."""
        one, two = (bound * self.scale for bound in inputs[0])
        ends = torch.minimum(one, two), torch.maximum(one, two)
        return sum_to_shape(ends[0][:, None], self.shape)[:, 0], sum_to_shape(ends[1][:, None], self.shape)[:, 0]

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """The rows, spread and scaled."""
        spread = rows.view(*rows.shape[:2], *[1] * (len(shapes[0]) - len(self.shape)), *self.shape)
        return [spread.expand(*rows.shape[:2], *shapes[0]) * self.scale]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Scaling."""
        return [ChannelAffine(self.scale, torch.zeros_like(self.scale))]


class Monotone(LinearOperation):
    """A linear map of one input with no negative coefficient: reshaping, slicing, averaging; its transpose by autograd.

    `overlap` is the number of outputs that one input enters, 0 where nothing is computed but only moved, None where it is not
    known.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], overlap: int | None = None) -> None:
        self.function, self.overlap = function, overlap

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.function(inputs[0])

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The map of both ends."""
        return self.function(inputs[0][0]), self.function(inputs[0][1])

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """The vector–Jacobian product, which for a linear map is its transpose."""
        count = rows.shape[0] * rows.shape[1]
        with torch.enable_grad():
            anywhere = rows.new_zeros(count, *shapes[0], requires_grad=True)
            value = self.function(anywhere)
            (back,) = torch.autograd.grad(value, anywhere, rows.flatten(0, 1), create_graph=rows.requires_grad)
        return [back.view(*rows.shape[:2], *shapes[0])]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """The vector–Jacobian product, which has no negative coefficient either."""
        return [Monotone(lambda x: self.transpose(x[:, None], shapes)[0][:, 0])]


class Reshape(Monotone):
    """The same numbers in another shape of a sample."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(lambda x: x.reshape(len(x), *shape), 0)

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """The rows in the shape of the input."""
        return [rows.reshape(*rows.shape[:2], *shapes[0])]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Back to the shape of the input."""
        return [Reshape(shapes[0])]


class WeightedSum(LinearOperation):
    """y = a₁x₁ + a₂x₂ with numbers a₁, a₂; inputs broadcast."""

    def __init__(self, first: float, second: float) -> None:
        self.factors = (first, second)

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The same."""
        return size

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.factors[0] * inputs[0] + self.factors[1] * inputs[1]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Ends swap where the factor is negative."""
        lower: Tensor | float = 0.0
        upper: Tensor | float = 0.0
        for factor, (low, high) in zip(self.factors, inputs, strict=True):
            lower = lower + factor * (low if factor >= 0 else high)
            upper = upper + factor * (high if factor >= 0 else low)
        assert isinstance(lower, Tensor)
        assert isinstance(upper, Tensor)
        return lower, upper

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """The rows, scaled, and summed over axes that were broadcast."""
        parts = zip(self.factors, shapes, strict=True)
        return [sum_to_shape(rows if factor == 1 else factor * rows, shape) for factor, shape in parts]

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> Sequence[Rows]:
        """The windows, scaled."""
        if any(shape != rows.plane for shape in shapes):
            return self.transpose(rows.dense(), shapes)
        return [rows if factor == 1 else rows.scaled(factor) for factor in self.factors]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Scaling by either factor."""
        factors = (torch.tensor(factor).double() for factor in self.factors)
        return [Broadcast(factor, shape) for factor, shape in zip(factors, shapes, strict=True)]


class Concatenation(LinearOperation):
    """Inputs joined along an axis of a sample."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The same where channels are joined."""
        return size if self.axis == 0 else plane[1:]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return torch.cat(list(inputs), self.axis + 1)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Both ends, joined."""
        return self.forward([low for low, _ in inputs]), self.forward([high for _, high in inputs])

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """The rows, cut apart."""
        parts = rows.split([shape[self.axis] for shape in shapes], self.axis + 2)
        return list(parts)

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> Sequence[Rows]:
        """The windows, cut apart along the channels."""
        if self.axis != 0:
            return self.transpose(rows.dense(), shapes)
        sizes = [shape[0] for shape in shapes]
        return [rows.channels(sum(sizes[:index]), size) for index, size in enumerate(sizes)]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Slicing."""
        sizes = [shape[self.axis] for shape in shapes]
        return [self._slice(sum(sizes[:index]), size) for index, size in enumerate(sizes)]

    def _slice(self, start: int, size: int) -> Monotone:
        return Monotone(lambda x: x.narrow(self.axis + 1, start, size))


def in_precision(operation: Operation, dtype: torch.dtype) -> Operation:
    """The operation with all its constants in another precision."""

    def given(name: str) -> bool:
        """Whether an attribute is no `cached_property`, which is computed from the others."""
        return not isinstance(getattr(type(operation), name, None), cached_property)

    parts = {name: value for name, value in vars(operation).items() if given(name)}
    if not any(isinstance(value, Tensor) for value in parts.values()):
        return operation
    found = copy.copy(operation)
    vars(found).clear()
    for name, value in parts.items():
        floating = isinstance(value, Tensor) and value.is_floating_point()
        vars(found)[name] = value.to(dtype) if floating else value
    return found


def sum_to_shape(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows (N, R, …) summed over the axes along which a sample of this shape was broadcast."""
    missing = rows.ndim - 2 - len(shape)
    if missing:
        rows = rows.flatten(2, 1 + missing).sum(2)
    for axis, size in enumerate(shape, start=2):
        if size == 1 and rows.shape[axis] != 1:
            rows = rows.sum(axis, keepdim=True)
    return rows
