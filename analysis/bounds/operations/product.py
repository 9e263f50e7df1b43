"""The product of two activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Interval, JointRelaxation, Operation
from certood.analysis.bounds.operations.broadcasting import broadcast_norm, sum_to_shape
from certood.analysis.bounds.operations.flattening import totals
from certood.analysis.bounds.operations.gates import Gate
from certood.analysis.bounds.operations.monotone import Monotone
from certood.analysis.bounds.operations.precision import largest, unit_roundoff, widened


class Product(JointRelaxation):
    """The product of two activations, which may broadcast (squeeze and excitation), bounded by McCormick's planes."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return inputs[0] * inputs[1]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The extremes of the four products of ends."""
        (a, b), (c, d) = inputs
        corners = torch.stack(torch.broadcast_tensors(a * c, a * d, b * c, b * d))
        return widened(corners.amin(0), corners.amax(0), corners.abs().amax(0), 1)

    def transpose_lower(
        self, rows: Tensor, boxes: Sequence[Interval], shapes: Sequence[torch.Size]
    ) -> tuple[list[Tensor], Tensor]:
        """Below: xy ≥ c·x + a·y − ac; above: xy ≤ d·x + a·y − ad, for x in [a, b], y in [c, d]."""
        (a, _), (c, d) = boxes
        positive, negative = rows.clamp_min(0), rows.clamp_max(0)
        first = positive * c[:, None] + negative * d[:, None]
        second = (positive + negative) * a[:, None]
        constant = -totals(positive * (a * c)[:, None] + negative * (a * d)[:, None])
        # Of every product above, whose factors all lie within these magnitudes.
        size = largest(*boxes[0]) * largest(c, d)
        count = rows[0, 0].numel() + 8
        constant = constant - 8 * count * unit_roundoff(rows.dtype) * totals(rows.abs() * size[:, None])
        return [sum_to_shape(first, shapes[0]), sum_to_shape(second, shapes[1])], constant

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The largest magnitude of the other factor, and what broadcasting adds."""
        largest = [float(torch.maximum(low.abs(), high.abs()).max()) for low, high in boxes]
        result = torch.broadcast_shapes(*shapes)
        copies = [broadcast_norm(p, result, shape) for shape in shapes]
        return [largest[1] * copies[0], largest[0] * copies[1]]

    def gradient(
        self, shapes: Sequence[torch.Size], boxes: Sequence[Interval]
    ) -> list[list[tuple[Operation, torch.Size]]]:
        """Gate by the other factor, and sum over the axes along which the input had been broadcast."""
        result = torch.broadcast_shapes(*shapes)
        chains: list[list[tuple[Operation, torch.Size]]] = []
        for other, shape in ((1, shapes[0]), (0, shapes[1])):
            least, most = (bound.expand(len(bound), *result) for bound in boxes[other])
            chains.append([(Gate(least, most), result), (_summed(shape), shape)])
        return chains


def _summed(shape: torch.Size) -> Monotone:
    """The sum over the axes along which an input of this shape had been broadcast."""
    return Monotone(lambda x: sum_to_shape(x[:, None], shape)[:, 0])
