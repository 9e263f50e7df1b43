"""Linear operations: their value, their interval bounds, and their transpose applied to rows of coefficients.

Coefficients of a node are rows A of shape (N, R, *shape): R linear functions per image. `transpose` turns the coefficients
of an operation's output into those of its inputs and adds what is constant.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.relaxations import Relaxation
from certood.analysis.bounds.sums import blocked_sum
from certood.analysis.bounds.windows import Windows

Interval = tuple[Tensor, Tensor]
Rows = Tensor | Windows


# Windows that cover more than one part in so many of the plane become whole planes.
WINDOW_SHARE = 2
# Windows of at least so many pixels go back through a convolution of stride 1 as convolutions do.
CONVOLVED_AREA = 9
# A matrix product with fewer columns than this is slower than its arithmetic.
PRODUCT_COLUMNS = 96


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

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> tuple[Sequence[Rows], Tensor]:
        """What `transpose` gives, for rows that are windows; as whole planes unless the operation knows better."""
        return self.transpose(rows.dense(), shapes)

    def unit_rows(self, neurons: Tensor, shapes: Sequence[torch.Size], plane: torch.Size) -> tuple[Rows, Tensor] | None:
        """Rows of the one input, and constants (N, R), that give single outputs (N, R) of a node of this shape; None where that
        is no shorter than `transpose`."""
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
        constant = blocked_sum((rows * self.bias).flatten(2))
        return [rows @ self.weight], constant

    def unit_rows(self, neurons: Tensor, shapes: Sequence[torch.Size], plane: torch.Size) -> tuple[Rows, Tensor] | None:
        """Rows of W."""
        if len(plane) != 1:
            return None
        return self.weight[neurons], self.bias[neurons].to(torch.float64)

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
        back, constant = self.transpose_windows(Windows.whole(rows), shapes)
        return [part.dense() if isinstance(part, Windows) else part for part in back], constant

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> tuple[Sequence[Rows], Tensor]:
        """Windows grow by the kernel; those that would cover most of the plane become whole planes."""
        constant = blocked_sum((rows.values @ self.bias).flatten(2))
        plane = shapes[0]
        grown = [
            (size - 1) * stride + dilation * (extent - 1) + 1
            for size, stride, dilation, extent in zip(
                rows.size, self.stride, self.dilation, self.weight.shape[2:], strict=True
            )
        ]
        if not rows.covers and grown[0] * grown[1] * WINDOW_SHARE <= plane[1] * plane[2]:
            top = rows.top * self.stride[0] - self.padding[0]
            left = rows.left * self.stride[1] - self.padding[1]
            found = Windows(self._spread(rows, grown, (0, 0)), top, left, plane)
            # What falls on the padding multiplies zeros.
            return [found.scaled(found.inside())], constant
        rows = rows.spread()
        found = Windows(self._spread(rows, plane[1:], self.padding), rows.top, rows.left, plane, covers=True)
        return [found], constant

    def _spread(self, rows: Windows, size: Sequence[int], padding: tuple[int, int]) -> Tensor:
        """The transposed convolution (N, R, *size, C).

        Small windows go by one matrix product for every element of the kernel, which costs less than a convolution's set-up.
        """
        if rows.covers or (self.stride == (1, 1) and rows.size[0] * rows.size[1] >= CONVOLVED_AREA):
            return self._convolved_back(rows.values, size, padding)
        kernel = self.weight.shape[2:]
        own = self.weight.unflatten(0, (self.groups, -1)).permute(3, 4, 0, 1, 2)
        count, total, height, width, _ = rows.values.shape
        values = rows.values.reshape(count * total * height * width, self.groups, -1)
        back = values.new_zeros(count, total, *size, self.groups * own.shape[4])
        taps = list(itertools.product(range(kernel[0]), range(kernel[1])))
        # Few columns make a slow product: all elements of the kernel at once where they are few.
        step = max(1, PRODUCT_COLUMNS // own.shape[4])
        for start in range(0, len(taps), step):
            some = taps[start : start + step]
            weights = own.flatten(0, 1)[start : start + len(some)]
            if self.groups == 1:
                parts = values[:, 0] @ weights[:, 0].permute(1, 0, 2).flatten(1)
            else:
                parts = torch.einsum("xgc,tgcd->xtgd", values, weights)
            parts = parts.reshape(count, total, height, width, len(some), -1)
            for place, (down, right) in enumerate(some):
                first = down * self.dilation[0] - padding[0], right * self.dilation[1] - padding[1]
                (near, near_place), (far, far_place) = (
                    _landing(begin, stride, extent, limit)
                    for begin, stride, extent, limit in zip(first, self.stride, (height, width), size, strict=True)
                )
                back[:, :, near_place, far_place] += parts[:, :, near, far, place]
        return back

    def _convolved_back(self, values: Tensor, size: Sequence[int], padding: tuple[int, int]) -> Tensor:
        # Channels last in memory, as all that windows are met with.
        flat = values.flatten(0, 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        # What the convolution left over at the far border, because its stride did not reach it.
        rest = [
            whole - ((extent - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
            for whole, extent, stride, pad, dilation, kernel in zip(
                size, flat.shape[2:], self.stride, padding, self.dilation, self.weight.shape[2:], strict=True
            )
        ]
        back = F.conv_transpose2d(flat, self.weight, None, self.stride, padding, rest, self.groups, self.dilation)
        found: Tensor = back.permute(0, 2, 3, 1).unflatten(0, values.shape[:2])
        return found

    def unit_rows(self, neurons: Tensor, shapes: Sequence[torch.Size], plane: torch.Size) -> tuple[Rows, Tensor] | None:
        """The kernels of the neurons, each where it reads."""
        if self.groups != 1:
            return None
        channels = neurons // (plane[1] * plane[2])
        top = neurons // plane[2] % plane[1] * self.stride[0] - self.padding[0]
        left = neurons % plane[2] * self.stride[1] - self.padding[1]
        reach = [
            dilation * (kernel - 1) + 1 for dilation, kernel in zip(self.dilation, self.weight.shape[2:], strict=True)
        ]
        if reach[0] * reach[1] * WINDOW_SHARE > shapes[0][1] * shapes[0][2]:
            return None
        kernels = self.weight.new_zeros(len(self.weight), *reach, self.weight.shape[1])
        kernels[:, :: self.dilation[0], :: self.dilation[1]] = self.weight.permute(0, 2, 3, 1)
        found = Windows(kernels[channels], top, left, shapes[0])
        return found.scaled(found.inside()), self.bias[channels].to(torch.float64)

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """The transposed convolution."""
        return [TransposedConvolution(self, shapes[0])]


def _landing(start: int, stride: int, extent: int, limit: int) -> tuple[slice, slice]:
    """Which of `extent` elements at start, start + stride, … fall into [0, limit), and where."""
    first = max(0, -(start // stride)) if start < 0 else 0
    last = min(extent, (limit - 1 - start) // stride + 1)
    last = max(last, first)
    place = start + first * stride
    return slice(first, last), slice(place, max(place, place + (last - first - 1) * stride + 1), stride)


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
        constant = blocked_sum((rows * self.shift).flatten(2))
        return [sum_to_shape(rows * self.scale, shapes[0])], constant

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> tuple[Sequence[Rows], Tensor]:
        """The windows, scaled."""
        if shapes[0] != rows.plane:
            return self.transpose(rows.dense(), shapes)
        scale, shift = (rows.gather(part.expand(len(rows.top), *rows.plane)) for part in (self.scale, self.shift))
        return [rows.scaled(scale)], blocked_sum((rows.values * shift).flatten(2))

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

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> tuple[Sequence[Rows], Tensor]:
        """The windows, scaled."""
        if any(shape != rows.plane for shape in shapes):
            return self.transpose(rows.dense(), shapes)
        return [rows.scaled(factor) for factor in self.factors], rows.values.new_zeros(rows.top.shape)

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

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> tuple[Sequence[Rows], Tensor]:
        """The windows, cut apart along the channels."""
        if self.axis != 0:
            return self.transpose(rows.dense(), shapes)
        sizes = [shape[0] for shape in shapes]
        parts = [rows.channels(sum(sizes[:index]), size) for index, size in enumerate(sizes)]
        return parts, rows.values.new_zeros(rows.top.shape)

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
