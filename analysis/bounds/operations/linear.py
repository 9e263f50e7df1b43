"""A matrix on the last axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations.base import Interval, LinearOperation, Operation, Rows
from certood.analysis.bounds.operations.broadcasting import along_axis
from certood.analysis.bounds.operations.norms import DUAL, SLACK
from certood.analysis.bounds.operations.precision import largest, relative_error, underflow


class Linear(LinearOperation):
    """y = Wx + b over the last axis."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias if bias is not None else weight.new_zeros(len(weight))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return F.linear(inputs[0], self.weight, self.bias)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centre and radius: |W| times the radius, to which a share of the largest magnitude is added for rounding."""
        lower, upper = inputs[0]
        share = relative_error(self.weight.shape[1] + 1, lower.dtype)
        middle = F.linear((lower + upper) / 2, self.weight, self.bias)
        reach = torch.add((upper - lower) / 2, largest(lower, upper), alpha=share)
        radius = F.linear(reach, self.magnitude, self._slack)
        return middle - radius, middle + radius

    def residual(self, inputs: Sequence[Tensor], value: Tensor) -> Tensor:
        """The rounding of the products and of the bias."""
        share = relative_error(self.weight.shape[1] + 1, value.dtype)
        return F.linear(inputs[0].abs() * share, self.magnitude, self._slack)

    def training_interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centre and radius."""
        lower, upper = inputs[0]
        middle = F.linear(torch.lerp(lower, upper, 0.5), self.weight, self.bias)
        radius = F.linear(upper - lower, self.magnitude / 2)
        return middle - radius, middle + radius

    @property
    def magnitude(self) -> Tensor:
        """|W|; computed anew where it must be differentiable."""
        return self.weight.abs() if self.weight.requires_grad else self._magnitude

    @cached_property
    def _magnitude(self) -> Tensor:
        return self.weight.abs()

    @cached_property
    def _slack(self) -> Tensor:
        """What adding the bias, and underflow, may cost a value."""
        terms, dtype = self.weight.shape[1] + 1, self.weight.dtype
        return self.bias.detach().abs() * relative_error(terms, dtype) + underflow(terms, dtype)

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

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """A product for every column of W, and the bias."""
        return self.weight.shape[1] + 1

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
