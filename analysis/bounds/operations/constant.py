"""A value that does not depend on the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Interval, LinearOperation


class Constant(LinearOperation):
    """y = b (*shape), whatever the input: class tokens, positions, what is joined with an activation."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """b for every image."""
        return self.value.expand(len(inputs[0]), *self.value.shape)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """b twice."""
        value = self.forward([inputs[0][0]])
        return value, value

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Zeros."""
        return [rows.new_zeros(*rows.shape[:2], *shapes[0])]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """Zeros."""
        return [Constant(self.value.new_zeros(shapes[0]))]

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """No products: nothing depends on the image."""
        return 0

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """No products: nothing depends on the image."""
        return 0

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """0."""
        return [0.0] * len(shapes)
