"""Several inputs in one linear operation: weighted sums and concatenations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.affine import ScaledSum
from certood.analysis.bounds.operations.base import Interval, LinearOperation, Rows
from certood.analysis.bounds.operations.broadcasting import broadcast_norm, sum_to_shape
from certood.analysis.bounds.operations.monotone import Monotone
from certood.analysis.bounds.operations.precision import largest, widened


class WeightedSum(LinearOperation):
    """y = a₁x₁ + a₂x₂ with numbers a₁, a₂; inputs broadcast."""

    def __init__(self, first: float, second: float) -> None:
        self.factors = (first, second)

    @property
    def multiples(self) -> Sequence[float] | None:
        """a₁ and a₂."""
        return self.factors

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The window of the output, in every input."""
        return size

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.factors[0] * inputs[0] + self.factors[1] * inputs[1]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Ends swap where the factor is negative."""
        lower, upper = [], []
        for factor, (low, high) in zip(self.factors, inputs, strict=True):
            lower.append(factor * (low if factor >= 0 else high))
            upper.append(factor * (high if factor >= 0 else low))
        size = sum(abs(factor) * largest(*box) for factor, box in zip(self.factors, inputs, strict=True))
        assert isinstance(size, Tensor)
        return widened(lower[0] + lower[1], upper[0] + upper[1], size, 2)

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
        factors = (torch.tensor(factor, dtype=torch.float64) for factor in self.factors)
        return [ScaledSum(factor, shape) for factor, shape in zip(factors, shapes, strict=True)]

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """One product, or as many as there are copies of an input."""
        return 1 if all(size == shape for size in shapes) else shape.numel()

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """Two products."""
        return 2

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """|a|, and what broadcasting adds."""
        result = torch.broadcast_shapes(*shapes)
        return [abs(a) * broadcast_norm(p, result, shape) for a, shape in zip(self.factors, shapes, strict=True)]

    def element_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """|a|."""
        return [abs(factor) for factor in self.factors]


class Concatenation(LinearOperation):
    """Inputs joined along an axis of a sample."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The window of the output where channels are joined; the whole plane otherwise."""
        return size if self.axis == 0 else plane[1:]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return torch.cat(list(inputs), self.axis + 1)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The ends of the inputs' boxes, joined."""
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
        return Monotone(lambda x: x.narrow(self.axis + 1, start, size), 0)

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """No products: numbers are only moved."""
        return 0

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """No products: numbers are only moved."""
        return 0

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """1."""
        return [1.0] * len(shapes)

    def combined_change(self, p: float, changes: Sequence[float]) -> float:
        """The p-norm of the changes, which fall on different elements."""
        return max(changes) if p == math.inf else sum(change**p for change in changes) ** (1 / p)
