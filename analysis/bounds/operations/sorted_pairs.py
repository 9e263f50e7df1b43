"""Two values in order: MaxMin, and GroupSort with groups of two, the activations of networks of small Lipschitz constant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Interval, JointRelaxation, Operation
from certood.analysis.bounds.operations.flattening import totals
from certood.analysis.bounds.operations.gates import Gate
from certood.analysis.bounds.operations.monotone import Monotone
from certood.analysis.bounds.operations.relaxations import relu_of_difference


class SortedPairs(JointRelaxation):
    """The smaller and the larger (or, `descending`, the reverse) of two values x, y along an axis of size 2 of a sample.

    Anil et al., ICML 2019 (arXiv 1811.05381). As both are bounded together, one ReLU of y − x is all that is relaxed, and the
    operator norm is 1, where a maximum and a minimum by themselves have 1 each.
    """

    def __init__(self, axis: int, *, descending: bool = False) -> None:
        self.axis, self.descending = axis, descending

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return inputs[0].sort(self.axis + 1, descending=self.descending).values

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The ends in order: both values rise with x and with y."""
        return self.forward([inputs[0][0]]), self.forward([inputs[0][1]])

    def transpose_lower(
        self, rows: Tensor, boxes: Sequence[Interval], shapes: Sequence[torch.Size]
    ) -> tuple[list[Tensor], Tensor]:
        """With coefficients r of the smaller value and s of the larger: r·y + s·x + (s − r)·relu(y − x)."""
        lower, upper = boxes[0]
        (a, c), (b, d) = (bound.unbind(self.axis + 1) for bound in (lower, upper))
        smaller, larger = rows.unbind(self.axis + 2)
        if self.descending:
            smaller, larger = larger, smaller
        difference, shift = relu_of_difference(larger - smaller, c - b, d - a)
        back = torch.stack([larger - difference, smaller + difference], self.axis + 2)
        return [back], totals(shift)

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The constant one: sorting brings no two points further apart, in any p-norm."""
        return [1.0]

    def gradient(
        self, shapes: Sequence[torch.Size], boxes: Sequence[Interval]
    ) -> list[list[tuple[Operation, torch.Size]]]:
        """A copy of the gradient for each input, gated by whether the input is that value, and summed over the values."""
        axis, shape = self.axis + 1, shapes[0]
        (a, c), (b, d) = (bound.unbind(axis) for bound in boxes[0])
        # Whether x must, and may, be the smaller of the two; y is the smaller where x is not.
        certain, possible = (c > b).to(a.dtype), (d >= a).to(a.dtype)
        least = torch.stack([certain, 1 - possible, 1 - possible, certain], axis)
        most = torch.stack([possible, 1 - certain, 1 - certain, possible], axis)
        wide = torch.Size((*shape[: self.axis], 2, *shape[self.axis :]))
        gate = Gate(*(bound.unflatten(axis, (2, 2)) for bound in (least, most)))

        def copied(gradient: Tensor) -> Tensor:
            ordered = gradient.flip(axis) if self.descending else gradient
            return torch.stack([ordered, ordered], axis)

        return [[(Monotone(copied, 2), wide), (gate, wide), (Monotone(lambda x: x.sum(axis + 1), 1), shape)]]
