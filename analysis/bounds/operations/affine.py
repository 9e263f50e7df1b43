"""Scaling and shifting of every element, and what it is backwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.base import Interval, LinearOperation, Operation, Rows
from certood.analysis.bounds.operations.broadcasting import broadcast_norm, sum_to_shape
from certood.analysis.bounds.operations.precision import largest, widened


class ChannelAffine(LinearOperation):
    """y = a·x + b with a and b that broadcast against one sample: batch normalisation, normalisation, scaling, shifting."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale, shift

    @property
    def affine(self) -> tuple[Tensor, Tensor] | None:
        """a and b."""
        return self.scale, self.shift

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The window of the output."""
        return size

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return inputs[0] * self.scale + self.shift

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Ends swap where the scale is negative."""
        one, two = (bound * self.scale + self.shift for bound in inputs[0])
        # What is shifted to −∞, as masks of attention do, is there exactly.
        size = largest(*inputs[0]) * self.scale.abs() + self.shift.abs().nan_to_num(posinf=0.0)
        return widened(torch.minimum(one, two), torch.maximum(one, two), size, 2)

    def training_interval(self, inputs: Sequence[Interval]) -> Interval:
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
            return [rows.scaled(rows.channels_last(scale))]
        return [replace(rows.scaled(rows.gather(rows.padded(scale))), clean=True)]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """An operation with this scale, without the shift."""
        return [ScaledSum(self.scale, shapes[0])]

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """One product, or as many as there are copies of an input."""
        return 1 if shapes[0] == shape else shape.numel()

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """A product and a shift."""
        return 2

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The largest |a|, and what broadcasting adds."""
        result = torch.broadcast_shapes(self.scale.shape, self.shift.shape, shapes[0])
        return [float(self.scale.abs().max()) * broadcast_norm(p, result, shapes[0])]

    def element_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The largest |a|."""
        return [float(self.scale.abs().max())]

    def followed_by(self, scale: Tensor, shift: Tensor, shape: torch.Size) -> Operation | None:
        """An operation with another scale and shift."""
        return ChannelAffine(self.scale * scale, self.shift * scale + shift)


class ScaledSum(LinearOperation):
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
        size = largest(*inputs[0]) * self.scale.abs()
        low, high, total = (sum_to_shape(part[:, None], self.shape)[:, 0] for part in (*ends, size))
        return widened(low, high, total, max(1, size[0].numel() // max(1, total[0].numel())))

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """The rows, spread and scaled."""
        spread = rows.view(*rows.shape[:2], *[1] * (len(shapes[0]) - len(self.shape)), *self.shape)
        return [spread.expand(*rows.shape[:2], *shapes[0]) * self.scale]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Scaling of every copy."""
        return [ChannelAffine(self.scale.expand(shapes[0]), self.scale.new_zeros(()))]

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """One product."""
        return 1

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """A product for every copy."""
        return max(1, shapes[0].numel() // max(1, shape.numel()))

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The largest |a| times the norm of a sum over c copies: c, √c or 1 for p = ∞, 2 and 1."""
        copies = shapes[0].numel() / max(1, self.shape.numel())
        largest = float(self.scale.abs().max())
        return [largest * copies ** (1.0 if p == math.inf else 1 - 1 / p)]
