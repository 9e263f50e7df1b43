"""Any linear map given by a weight: convolutions of all kinds, and products with constant tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Interval, LinearOperation
from certood.analysis.bounds.operations.norms import SLACK
from certood.analysis.bounds.operations.precision import largest, relative_error, underflow

Function = Callable[[Tensor, Tensor], Tensor]


class Contraction(LinearOperation):
    """y = f(x, W) + b, where f sums products of entries of x and W, each with the factor 1.

    Its transpose comes by autograd, and f(·, |W|) bounds what it does to magnitudes.
    """

    def __init__(self, function: Function, weight: Tensor, bias: Tensor | None = None) -> None:
        self.function, self.weight, self.bias = function, weight, bias

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        value = self.function(inputs[0], self.weight)
        return value if self.bias is None else value + self.bias

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centre and radius: f(radius, |W|), with a share of the largest magnitude for rounding."""
        lower, upper = inputs[0]
        terms = min(lower[0].numel(), self.weight.numel()) + 1
        share = relative_error(terms, lower.dtype)
        middle = self.forward([(lower + upper) / 2])
        reach = torch.add((upper - lower) / 2, largest(lower, upper), alpha=share)
        radius = self.function(reach, self.weight.abs()) + underflow(terms, lower.dtype)
        if self.bias is not None:
            radius = radius + share * self.bias.abs()
        return middle - radius, middle + radius

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """The vector–Jacobian product, which for a linear map is its transpose."""
        back = _transposed(self.function, shapes[0])(rows.flatten(0, 1), self.weight)
        return [back.view(*rows.shape[:2], *shapes[0])]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """The transpose, with the same weight."""
        return [Contraction(_transposed(self.function, shapes[0]), self.weight)]

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """Absolute sums of rows for ∞, of columns for 1, and the root of their product for 2."""
        ones = self.weight.new_ones(1, *shapes[0])
        value = self.function(ones, self.weight.abs())
        back = _transposed(self.function, shapes[0])(torch.ones_like(value), self.weight.abs())
        rows, columns = float(value.max()) * (1 + SLACK), float(back.max()) * (1 + SLACK)
        return [{math.inf: rows, 1: columns}.get(p, math.sqrt(rows * columns))]


def _transposed(function: Function, shape: torch.Size) -> Function:
    """The transpose of f(·, W) on inputs of this shape, as a function of the same kind."""

    def transposed(g: Tensor, weight: Tensor) -> Tensor:
        differentiable = g.requires_grad or weight.requires_grad
        with torch.enable_grad():
            anywhere = g.new_zeros(len(g), *shape, requires_grad=True)
            value = function(anywhere, weight)
            (back,) = torch.autograd.grad(value, anywhere, g, create_graph=differentiable)
        return back

    return transposed
