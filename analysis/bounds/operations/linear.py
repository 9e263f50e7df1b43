"""A matrix on the last axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations.base import Interval, LinearOperation, Operation, Rows
from certood.analysis.bounds.operations.broadcasting import along_axis
from certood.analysis.bounds.operations.norms import DUAL, SLACK
from certood.analysis.bounds.operations.weighted import Weighted


class Linear(Weighted):
    """y = Wx + b over the last axis."""

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product with a matrix."""
        return F.linear(x, weight, bias)

    @property
    def matrix(self) -> Tensor | None:
        """W."""
        return self.weight

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

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """A product for every row of W."""
        return len(self.weight)

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """p = ∞ and 1: absolute row and column sums; p = 2: the largest singular value."""
        if p == 2:
            return [float(torch.linalg.matrix_norm(self.weight, 2)) * (1 + SLACK)]
        return [float(self.magnitude.sum(1 if p == math.inf else 0).max())]

    def element_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The largest dual norm of a row."""
        return [float(self.weight.norm(DUAL[p], dim=1).max())]

    def followed_by(self, scale: Tensor, shift: Tensor, shape: torch.Size) -> Operation | None:
        """The matrix with scaled rows, where scale and shift vary along the last axis only."""
        factor, added = along_axis(scale, shape, -1), along_axis(shift, shape, -1)
        if factor is None or added is None:
            return None
        return Linear(self.weight * factor[:, None], self.bias * factor + added)
