"""What a matrix and a convolution share: a product with a weight, whose intervals are centre and radius."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Interval, LinearOperation
from certood.analysis.bounds.operations.precision import largest, relative_error, underflow


class Weighted(LinearOperation):
    """y = W∗x + b, where an element of y sums as many products as `weight[0]` has elements."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias if bias is not None else weight.new_zeros(len(weight))

    @abstractmethod
    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product of inputs (N, *shape) with a weight and a bias like the operation's own."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.applied(inputs[0], self.weight, self.bias)

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centre and radius: |W| times the radius, to which a share of the largest magnitude is added for rounding."""
        lower, upper = inputs[0]
        share = relative_error(self._terms, lower.dtype)
        middle = self.applied((lower + upper) / 2, self.weight, self.bias)
        reach = torch.add((upper - lower) / 2, largest(lower, upper), alpha=share)
        radius = self.applied(reach, self.magnitude, self._slack)
        return middle - radius, middle + radius

    def residual(self, inputs: Sequence[Tensor], value: Tensor) -> Tensor:
        """The rounding of the products and of the bias."""
        return self.applied(inputs[0].abs() * relative_error(self._terms, value.dtype), self.magnitude, self._slack)

    def training_interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centre and radius."""
        lower, upper = inputs[0]
        middle = self.applied(torch.lerp(lower, upper, 0.5), self.weight, self.bias)
        radius = self.applied(upper - lower, self.magnitude / 2, None)
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
        dtype = self.weight.dtype
        return self.bias.detach().abs() * relative_error(self._terms, dtype) + underflow(self._terms, dtype)

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """A product for every element of a row of W or of a kernel, and the bias."""
        return self._terms

    @property
    def _terms(self) -> int:
        return self.weight[0].numel() + 1
