"""The larger of two activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Interval, JointRelaxation, Operation
from certood.analysis.bounds.operations.broadcasting import broadcast_norm, sum_to_shape
from certood.analysis.bounds.operations.flattening import totals
from certood.analysis.bounds.operations.gates import Gate
from certood.analysis.bounds.operations.monotone import Monotone
from certood.analysis.bounds.operations.relaxations import relu_of_difference


class PairwiseMaximum(JointRelaxation):
    """max(x, y) = y + relu(x − y) of activations that may broadcast, bounded by the two lines of the ReLU."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return torch.maximum(inputs[0], inputs[1])

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Maxima of both ends."""
        return torch.maximum(inputs[0][0], inputs[1][0]), torch.maximum(inputs[0][1], inputs[1][1])

    def transpose_lower(
        self, rows: Tensor, boxes: Sequence[Interval], shapes: Sequence[torch.Size]
    ) -> tuple[list[Tensor], Tensor]:
        """The difference takes the line below or above, and y itself what the rows are."""
        (a, b), (c, d) = boxes
        low, high = torch.broadcast_tensors(a - d, b - c)
        difference, shift = relu_of_difference(rows, low, high)
        back = [sum_to_shape(difference, shapes[0]), sum_to_shape(rows - difference, shapes[1])]
        return back, totals(shift)

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """1, and what broadcasting adds."""
        result = torch.broadcast_shapes(*shapes)
        return [broadcast_norm(p, result, shape) for shape in shapes]

    def gradient(
        self, shapes: Sequence[torch.Size], boxes: Sequence[Interval]
    ) -> list[list[tuple[Operation, torch.Size]]]:
        """Gate by whether either may or must be the larger, and sum over the axes along which it had been broadcast."""
        result = torch.broadcast_shapes(*shapes)
        (a, b), (c, d) = boxes
        chains: list[list[tuple[Operation, torch.Size]]] = []
        for low, high, other_low, other_high, shape in ((a, b, c, d, shapes[0]), (c, d, a, b, shapes[1])):
            certain, possible = (low > other_high).to(low.dtype), (high >= other_low).to(low.dtype)
            least, most = (side.expand(len(side), *result) for side in (certain, possible))
            chains.append([(Gate(least, most), result), (_summed(shape), shape)])
        return chains


def _summed(shape: torch.Size) -> Monotone:
    """The sum over the axes along which an input of this shape had been broadcast."""
    return Monotone(lambda x: sum_to_shape(x[:, None], shape)[:, 0])
