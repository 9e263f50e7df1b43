"""The matrix product of two activations: what attention is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Interval, JointRelaxation, Operation
from certood.analysis.bounds.operations.flattening import totals
from certood.analysis.bounds.operations.gates import Gate
from certood.analysis.bounds.operations.monotone import Monotone

# Rounding of the products of centres and radii, relative.
SLACK = 1e-12


class MatrixProduct(JointRelaxation):
    """z = xy for x (…, M, K) and y (…, K, D), with the same axes before them: McCormick's planes for every product."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return inputs[0] @ inputs[1]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centres and radii: |x̄|·r + R·|ȳ| + R·r around x̄ȳ (Rump, BIT 1999); exact products of ends where x ≥ 0."""
        (a, b), (c, d) = inputs
        x, y, x_radius, y_radius = (a + b) / 2, (c + d) / 2, (b - a) / 2, (d - c) / 2
        middle = x @ y
        radius = x.abs() @ y_radius + x_radius @ (y.abs() + y_radius)
        slack = SLACK * (x.abs() @ y.abs() + radius)
        low, high = middle - radius - slack, middle + radius + slack
        if not bool((a >= 0).all()):
            return low, high
        ends = a @ c.clamp_min(0) + b @ c.clamp_max(0), b @ d.clamp_min(0) + a @ d.clamp_max(0)
        return torch.fmax(low, ends[0] - slack), torch.fmin(high, ends[1] + slack)

    def transpose_lower(
        self, rows: Tensor, boxes: Sequence[Interval], shapes: Sequence[torch.Size]
    ) -> tuple[list[Tensor], Tensor]:
        """Below: x·y ≥ c·x + a·y − ac; above: x·y ≤ d·x + a·y − ad, for every product, summed."""
        (a, _), (c, d) = ([bound[:, None] for bound in box] for box in boxes)
        positive, negative = rows.clamp_min(0), rows.clamp_max(0)
        first = positive @ c.transpose(-2, -1) + negative @ d.transpose(-2, -1)
        second = a.transpose(-2, -1) @ rows
        constant = -totals(positive * (a @ c) + negative * (a @ d))
        return [first, second], constant

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The norm of the other factor: sums of rows or columns of its largest magnitudes, or the largest Frobenius norm."""
        x, y = (torch.maximum(low.abs(), high.abs()) for low, high in boxes)
        if p == 2:
            return [float(other.flatten(-2).norm(dim=-1).max()) for other in (y, x)]
        axes = (-2, -1) if p == math.inf else (-1, -2)
        return [float(y.sum(axes[0]).max()), float(x.sum(axes[1]).max())]

    def gradient(
        self, shapes: Sequence[torch.Size], boxes: Sequence[Interval]
    ) -> list[list[tuple[Operation, torch.Size]]]:
        """∂x = g·yᵀ and ∂y = xᵀ·g: every product of g gated by the other factor, and summed."""
        lead, (rows, inner), columns = shapes[0][:-2], shapes[0][-2:], shapes[1][-1]
        spread = torch.Size((*lead, rows, inner, columns))
        count = len(boxes[0][0])
        y = [bound[..., None, :, :].expand(count, *spread) for bound in boxes[1]]
        x = [bound[..., :, :, None].expand(count, *spread) for bound in boxes[0]]
        copies = Monotone(lambda g: g[..., :, None, :].expand(-1, *spread), inner)
        return [
            [(copies, spread), (Gate(y[0], y[1]), spread), (Monotone(lambda g: g.sum(-1), 1), shapes[0])],
            [(copies, spread), (Gate(x[0], x[1]), spread), (Monotone(lambda g: g.sum(-3), 1), shapes[1])],
        ]
