"""Linear operations: their value, their interval bounds, and their transpose applied to rows of coefficients.

Coefficients of a node are rows A of shape (N, R, *shape): R linear functions per image. `transpose` turns the coefficients
of an operation's output into those of its inputs and adds what is constant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.relaxations import Relaxation

Interval = tuple[Tensor, Tensor]


class Operation(ABC):
    """An operation on batches; parameters are constants in float64."""

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""

    @abstractmethod
    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Bounds of the value for inputs in these boxes."""


class LinearOperation(Operation):
    """An operation y = L(x₁, …) + b."""

    @abstractmethod
    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], Tensor]:
        """Rows (N, R, *input shape) of every input, and the constants (N, R), for rows (N, R, *output shape)."""

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
        radius = F.linear((upper - lower) / 2, self.weight.abs())
        return middle - radius, middle + radius

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], Tensor]:
        """Wᵀ of the rows."""
        constant = (rows * self.bias).flatten(2).sum(2)
        return [rows @ self.weight], constant

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Wᵀ."""
        return [Linear(self.weight.T.contiguous(), None)]


class Convolution(LinearOperation):
    """A convolution in two dimensions with zero padding."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        self.weight, self.bias = weight, bias if bias is not None else weight.new_zeros(len(weight))
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self._convolved(inputs[0], self.weight, self.bias)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centre and radius: the radius is convolved with |W|."""
        lower, upper = inputs[0]
        middle = self._convolved((lower + upper) / 2, self.weight, self.bias)
        radius = self._convolved((upper - lower) / 2, self.weight.abs(), None)
        return middle - radius, middle + radius

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], Tensor]:
        """Transposed convolution of the rows."""
        constant = torch.einsum("nrchw,c->nr", rows, self.bias)
        flat = rows.flatten(0, 1)
        height, width = shapes[0][1:]
        spare = [
            size - ((out - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
            for size, out, stride, padding, dilation, kernel in zip(
                (height, width),
                flat.shape[2:],
                self.stride,
                self.padding,
                self.dilation,
                self.weight.shape[2:],
                strict=True,
            )
        ]
        back = F.conv_transpose2d(
            flat, self.weight, None, self.stride, self.padding, (spare[0], spare[1]), self.groups, self.dilation
        )
        return [back.view(*rows.shape[:2], *shapes[0])], constant

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """The transposed convolution."""
        return [TransposedConvolution(self, shapes[0])]


class TransposedConvolution(LinearOperation):
    """The transpose of a convolution, without its bias: from its outputs to its inputs, of shape (C, H, W)."""

    def __init__(self, convolution: Convolution, shape: torch.Size) -> None:
        no_bias = torch.zeros_like(convolution.bias)
        geometry = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        self.convolution = Convolution(convolution.weight, no_bias, *geometry)
        self.magnitude = Convolution(convolution.weight.abs(), no_bias, *geometry)
        self.shape = shape

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.convolution.transpose(inputs[0][:, None], [self.shape])[0][0][:, 0]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centre and radius: the radius goes through |W|."""
        lower, upper = inputs[0]
        middle = self.forward([(lower + upper) / 2])
        radius = self.magnitude.transpose((upper - lower)[:, None] / 2, [self.shape])[0][0][:, 0]
        return middle - radius, middle + radius

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], Tensor]:
        """The convolution of the rows."""
        back = self.convolution.forward([rows.flatten(0, 1)])
        return [back.view(*rows.shape[:2], *shapes[0])], rows.new_zeros(rows.shape[:2])

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """The convolution."""
        return [self.convolution]


class ChannelAffine(LinearOperation):
    """y = a·x + b with a and b that broadcast against one sample: batch normalisation, normalisation, scaling, shifting."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale, shift

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return inputs[0] * self.scale + self.shift

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Ends swap where the scale is negative."""
        one, two = (bound * self.scale + self.shift for bound in inputs[0])
        return torch.minimum(one, two), torch.maximum(one, two)

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], Tensor]:
        """The rows, scaled, and summed over axes that were broadcast."""
        constant = (rows * self.shift).flatten(2).sum(2)
        return [sum_to_shape(rows * self.scale, shapes[0])], constant

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

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], Tensor]:
        """The rows, spread and scaled."""
        spread = rows.view(*rows.shape[:2], *[1] * (len(shapes[0]) - len(self.shape)), *self.shape)
        return [spread.expand(*rows.shape[:2], *shapes[0]) * self.scale], rows.new_zeros(rows.shape[:2])

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Scaling."""
        return [ChannelAffine(self.scale, torch.zeros_like(self.scale))]


class Monotone(LinearOperation):
    """A linear map of one input with no negative coefficient: reshaping, slicing, averaging; its transpose by autograd."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.function(inputs[0])

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The map of both ends."""
        return self.function(inputs[0][0]), self.function(inputs[0][1])

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], Tensor]:
        """The vector–Jacobian product, which for a linear map is its transpose."""
        count = rows.shape[0] * rows.shape[1]
        with torch.enable_grad():
            anywhere = rows.new_zeros(count, *shapes[0], requires_grad=True)
            value = self.function(anywhere)
            (back,) = torch.autograd.grad(value, anywhere, rows.flatten(0, 1), create_graph=rows.requires_grad)
        return [back.view(*rows.shape[:2], *shapes[0])], rows.new_zeros(rows.shape[:2])

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """The vector–Jacobian product, which has no negative coefficient either."""
        return [Monotone(lambda x: self.transpose(x[:, None], shapes)[0][0][:, 0])]


class WeightedSum(LinearOperation):
    """y = a₁x₁ + a₂x₂ with numbers a₁, a₂; inputs broadcast."""

    def __init__(self, first: float, second: float) -> None:
        self.factors = (first, second)

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

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], Tensor]:
        """The rows, scaled, and summed over axes that were broadcast."""
        parts = [sum_to_shape(factor * rows, shape) for factor, shape in zip(self.factors, shapes, strict=True)]
        return parts, rows.new_zeros(rows.shape[:2])

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Scaling by either factor."""
        factors = (torch.tensor(factor).double() for factor in self.factors)
        return [Broadcast(factor, shape) for factor, shape in zip(factors, shapes, strict=True)]


class Concatenation(LinearOperation):
    """Inputs joined along an axis of a sample."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return torch.cat(list(inputs), self.axis + 1)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Both ends, joined."""
        return self.forward([low for low, _ in inputs]), self.forward([high for _, high in inputs])

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], Tensor]:
        """The rows, cut apart."""
        parts = rows.split([shape[self.axis] for shape in shapes], self.axis + 2)
        return list(parts), rows.new_zeros(rows.shape[:2])

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Slicing."""
        sizes = [shape[self.axis] for shape in shapes]
        return [self._slice(sum(sizes[:index]), size) for index, size in enumerate(sizes)]

    def _slice(self, start: int, size: int) -> Monotone:
        return Monotone(lambda x: x.narrow(self.axis + 1, start, size))


def sum_to_shape(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows (N, R, …) summed over the axes along which a sample of this shape was broadcast."""
    missing = rows.ndim - 2 - len(shape)
    if missing:
        rows = rows.flatten(2, 1 + missing).sum(2)
    for axis, size in enumerate(shape, start=2):
        if size == 1 and rows.shape[axis] != 1:
            rows = rows.sum(axis, keepdim=True)
    return rows
