"""Max pooling over windows of a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations.base import Interval, JointRelaxation, Operation
from certood.analysis.bounds.operations.flattening import totals
from certood.analysis.bounds.operations.gates import Gate
from certood.analysis.bounds.operations.monotone import Monotone
from certood.analysis.bounds.operations.precision import unit_roundoff


class MaxPool(JointRelaxation):
    """Max pooling over windows.

    Below: the element of each window whose lower bound is largest. Above: the same element where it is the largest for
    certain, otherwise the largest upper bound, a constant.
    """

    def __init__(
        self,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        ceil: bool,
    ) -> None:
        self.kernel, self.stride, self.padding, self.dilation, self.ceil = kernel, stride, padding, dilation, ceil

    def _pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = F.max_pool2d(
            x, self.kernel, self.stride, self.padding, self.dilation, self.ceil, return_indices=True
        )
        return values, indices

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self._pooled(inputs[0])[0]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Maxima of both ends."""
        return self._pooled(inputs[0][0])[0], self._pooled(inputs[0][1])[0]

    def transpose_lower(
        self, rows: Tensor, boxes: Sequence[Interval], shapes: Sequence[torch.Size]
    ) -> tuple[list[Tensor], Tensor]:
        """Rows of the chosen elements, and constants."""
        lower, upper = boxes[0]
        best, chosen = self._pooled(lower)
        without = upper.flatten(2).clone()
        ceiling = self._pooled(upper)[0]
        # The element is certainly the largest of its window when no other upper bound exceeds its lower bound. Taking its
        # own upper bound out is only valid window by window, so it is compared with the largest of the window instead.
        upper_chosen = without.gather(2, chosen.flatten(2)).view_as(best)
        certain = (upper_chosen == ceiling) & (self._second(upper, chosen) <= best)
        positive, negative = rows.clamp_min(0), rows.clamp_max(0)
        kept = positive + torch.where(certain[:, None], negative, torch.zeros_like(negative))
        constant = totals(torch.where(certain, torch.zeros_like(ceiling), ceiling)[:, None] * negative)
        # Rounding of the sum, and of adding up what several windows ask of one element.
        size = torch.where(certain, upper_chosen - best, ceiling.abs() + upper_chosen - best)
        count = best[0].numel() + 8
        constant = constant - 2 * count * unit_roundoff(rows.dtype) * totals(rows.abs() * size[:, None])
        back = rows.new_zeros(*rows.shape[:3], lower.shape[2] * lower.shape[3])
        back = back.scatter_add(3, chosen.flatten(2)[:, None].expand(*rows.shape[:3], -1), kept.flatten(3))
        return [back.view(*rows.shape[:2], *shapes[0])], constant

    def winners(self, box: Interval) -> tuple[Tensor, Tensor]:
        """Whether each element of each window may be, and must be, its largest: two masks (N, C, elements, H, W)."""
        lower, upper = self.windows(box[0], -torch.inf), self.windows(box[1], -torch.inf)
        best, second = upper.topk(2, dim=2).values.unbind(2) if upper.shape[2] > 1 else (upper[:, :, 0], None)
        possible = (upper >= lower.amax(2, keepdim=True)) & upper.isfinite()
        if second is None:
            return possible, possible
        # The largest upper bound of the others.
        others = torch.where(upper == best[:, :, None], second[:, :, None], best[:, :, None])
        return possible, lower > others

    def _second(self, upper: Tensor, chosen: Tensor) -> Tensor:
        """The largest upper bound of each window but that of the chosen element."""
        height, width = upper.shape[2:]
        places = torch.arange(height * width, dtype=upper.dtype, device=upper.device).view(1, 1, height, width)
        columns, where = self.windows(upper, -torch.inf), self.windows(places, -1.0)
        others = torch.where(where == chosen[:, :, None].to(upper.dtype), -torch.inf, columns)
        return others.amax(2)

    def windows(self, x: Tensor, fill: float) -> Tensor:
        """The elements of every window, (N, C, elements, H, W), with `fill` beyond the border."""
        height, width = x.shape[2:]
        pooled = F.max_pool2d(
            x.new_zeros(1, 1, height, width), self.kernel, self.stride, self.padding, self.dilation, self.ceil
        )
        need = [
            max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - size - pad)
            for out, stride, dilation, kernel, size, pad in zip(
                pooled.shape[2:], self.stride, self.dilation, self.kernel, (height, width), self.padding, strict=True
            )
        ]
        padded = F.pad(x, (self.padding[1], need[1], self.padding[0], need[0]), value=fill)
        patches = padded.unfold(2, self.dilation[0] * (self.kernel[0] - 1) + 1, self.stride[0])
        patches = patches.unfold(3, self.dilation[1] * (self.kernel[1] - 1) + 1, self.stride[1])
        patches = patches[:, :, : pooled.shape[2], : pooled.shape[3], :: self.dilation[0], :: self.dilation[1]]
        return patches.flatten(4).permute(0, 1, 4, 2, 3).contiguous()

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The largest of a window changes by at most the largest change, and every element may be the largest of several."""
        overlaps = math.prod(
            math.ceil((dilation * (kernel - 1) + 1) / stride)
            for kernel, stride, dilation in zip(self.kernel, self.stride, self.dilation, strict=True)
        )
        return [1.0 if p == math.inf else overlaps ** (1 / p)]

    def element_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """1."""
        return [1.0]

    def gradient(
        self, shapes: Sequence[torch.Size], boxes: Sequence[Interval]
    ) -> list[list[tuple[Operation, torch.Size]]]:
        """Spread over the elements of each window, gate by whether one may or must be the largest, gather."""
        shape = shapes[0]
        possible, certain = self.winners(boxes[0])
        spread = torch.Size(possible.shape[1:])

        def windows(x: Tensor) -> Tensor:
            return self.windows(x, 0.0)

        def gather(x: Tensor) -> Tensor:
            return Monotone(windows).transpose(x[:, None], [shape])[0][:, 0]

        like = boxes[0][0]
        return [
            [
                (Monotone(lambda x: x[:, :, None].expand(-1, *spread)), spread),
                (Gate(certain.to(like.dtype), possible.to(like.dtype)), spread),
                (Monotone(gather), shape),
            ]
        ]
