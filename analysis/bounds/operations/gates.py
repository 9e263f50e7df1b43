"""A factor of which only an interval is known: what a derivative is on a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Elementwise, Interval
from certood.analysis.bounds.operations.precision import largest, widened
from certood.analysis.bounds.operations.relaxations import Relaxation


class Gate(Elementwise):
    """y = d·x for an unknown d in [least, most], elementwise, of shape (N, *shape)."""

    def __init__(self, least: Tensor, most: Tensor) -> None:
        self.least, self.most = least, most

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value for the middle factor."""
        return inputs[0] * (self.least + self.most) / 2

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """The extremes of the four products of ends."""
        lower, upper = inputs[0]
        size = largest(lower, upper) * largest(self.least, self.most)
        return widened(self._smallest(lower, upper), self._largest(lower, upper), size, 1)

    def _smallest(self, lower: Tensor, upper: Tensor) -> Tensor:
        corners = lower * self.least, lower * self.most, upper * self.least, upper * self.most
        return torch.stack(corners).amin(0)

    def _largest(self, lower: Tensor, upper: Tensor) -> Tensor:
        return -self._smallest(-upper, -lower)

    def lines(self, lower: Tensor, upper: Tensor) -> Relaxation:
        """The chords of x ↦ max d·x, which is convex, and of x ↦ min d·x, which is concave: the hull of all d·x."""
        top_left, top_right = self._largest(lower, lower), self._largest(upper, upper)
        low_left, low_right = self._smallest(lower, lower), self._smallest(upper, upper)
        width = upper - lower
        safe = torch.where(width > 0, width, torch.ones_like(width))
        upper_slope, lower_slope = (top_right - top_left) / safe, (low_right - low_left) / safe
        # A cotangent without width still has the exact factor as its slope where there is only one.
        settled = self.least == self.most
        upper_slope, lower_slope = (torch.where(settled, self.least, slope) for slope in (upper_slope, lower_slope))
        slack = 8 * torch.finfo(lower.dtype).eps * torch.maximum(top_left.abs(), top_right.abs())
        slack = slack + 8 * torch.finfo(lower.dtype).eps * torch.maximum(low_left.abs(), low_right.abs())
        slack = torch.where(settled, torch.zeros_like(slack), slack)
        # The chord through either end: the wider of both roundings.
        upper_shift = torch.maximum(top_left - upper_slope * lower, top_right - upper_slope * upper)
        lower_shift = torch.minimum(low_left - lower_slope * lower, low_right - lower_slope * upper)
        zero = torch.zeros_like(lower)
        return Relaxation(
            lower_slope,
            torch.where(settled, zero, lower_shift - slack),
            upper_slope,
            torch.where(settled, zero, upper_shift + slack),
        )

    def unsettled(self, box: Interval) -> Tensor:
        """Where the factor is not known and the sign of x is not either."""
        return (self.least < self.most) & (box[0] < 0) & (box[1] > 0)

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The largest magnitude of a factor."""
        return [float(torch.maximum(self.least.abs(), self.most.abs()).max())]
