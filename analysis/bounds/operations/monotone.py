"""Linear maps of one input with no negative coefficient: reshaping, slicing, padding, summing, averaging."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Interval, LinearOperation
from certood.analysis.bounds.operations.precision import largest, widened


class Monotone(LinearOperation):
    """A linear map of one input with no negative coefficient; its transpose by autograd.

    `overlap` is the number of outputs that one input enters, None where it is not known, and 0 where numbers are only moved:
    every output is one input or zero, and no input enters two outputs.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], overlap: int | None = None) -> None:
        self.function, self.overlap = function, overlap

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.function(inputs[0])

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The map of both ends."""
        lower, upper = inputs[0]
        low, high = self.function(lower), self.function(upper)
        if self.overlap == 0:
            return low, high
        return widened(low, high, self.function(largest(lower, upper)), lower[0].numel())

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
        return [Monotone(lambda x: self.transpose(x[:, None], shapes)[0][:, 0], 0 if self.overlap == 0 else None)]

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """The overlap."""
        return shape.numel() if self.overlap is None else self.overlap

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """No products where numbers are only moved, else at most all."""
        return 0 if self.overlap == 0 else shapes[0].numel()

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """p = ∞ and 1: sums of rows and columns, as no coefficient is negative; p = 2: √(‖A‖₁‖A‖_∞) (Schur)."""
        like = boxes[0][0]
        rows = self.forward([like.new_ones(1, *shapes[0])])
        columns = self.transpose(torch.ones_like(rows)[:, None], shapes)[0]
        largest = float(rows.max()), float(columns.max())
        return [{math.inf: largest[0], 1.0: largest[1]}.get(p, math.sqrt(largest[0] * largest[1]))]


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
