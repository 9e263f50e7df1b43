"""Rows of coefficients that are zero outside a small window of a plane: rows before and after convolutions.

A neuron of a convolution reads its receptive field only. Rows that stay windows cost what that field costs, not what the plane
does. Channels come last, so that gathering copies whole runs of memory and a transposed convolution is one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Rows over planes of shape (C, H, W): `values` (N, R, h, w, C) at `top`, `left` (N, R), which may be negative.

    Values beyond the border of the plane are zero. Rows that `covers` says to be whole planes stand at 0, 0.
    """

    values: Tensor
    top: Tensor
    left: Tensor
    plane: torch.Size
    covers: bool = False

    @staticmethod
    def whole(rows: Tensor) -> Windows:
        """Rows (N, R, C, H, W) of whole planes."""
        origin = torch.zeros(rows.shape[:2], dtype=torch.int64)
        return Windows(rows.permute(0, 1, 3, 4, 2), origin, origin, rows.shape[2:], covers=True)

    @staticmethod
    def units(neurons: Tensor, plane: torch.Size, dtype: torch.dtype) -> Windows:
        """The rows that read off single neurons, given by their flat indices (N, R)."""
        channels, height, width = plane
        values = torch.zeros(*neurons.shape, 1, 1, channels, dtype=dtype)
        values.view(*neurons.shape, channels).scatter_(2, (neurons // (height * width))[..., None], 1.0)
        return Windows(values, neurons // width % height, neurons % width, plane)

    def __neg__(self) -> Windows:
        return replace(self, values=-self.values)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the window."""
        return self.values.shape[2], self.values.shape[3]

    def split(self, count: int) -> list[Windows]:
        """The rows in parts of at most so many."""
        parts = zip(self.values.split(count, 1), self.top.split(count, 1), self.left.split(count, 1), strict=True)
        return [Windows(*part, self.plane, self.covers) for part in parts]

    def to(self, dtype: torch.dtype) -> Windows:
        """The rows in another precision."""
        return replace(self, values=self.values.to(dtype))

    def scaled(self, factor: Tensor | float) -> Windows:
        """The rows times what broadcasts against (N, R, h, w, C)."""
        return replace(self, values=self.values * factor)

    def channels(self, start: int, count: int) -> Windows:
        """The part of some channels."""
        plane = torch.Size((count, *self.plane[1:]))
        return replace(self, values=self.values.narrow(4, start, count), plane=plane)

    def _places(self) -> tuple[Tensor, Tensor]:
        """Row and column in the plane of every element of the window: (N, R, h, 1) and (N, R, 1, w)."""
        height, width = self.size
        down = self.top[..., None] + torch.arange(height)
        right = self.left[..., None] + torch.arange(width)
        return down[..., :, None], right[..., None, :]

    def inside(self) -> Tensor:
        """Whether every element of the window lies in the plane: (N, R, h, w, 1)."""
        down, right = self._places()
        _, height, width = self.plane
        return ((down >= 0) & (down < height) & (right >= 0) & (right < width))[..., None]

    def gather(self, planes: Tensor) -> Tensor:
        """The values (N, R or 1, h, w, C) of planes (N, C, H, W) under the windows, anything beyond the border."""
        if self.covers:
            return planes.permute(0, 2, 3, 1)[:, None]
        down, right = self._places()
        _, height, width = self.plane
        index = down.clamp(0, height - 1) * width + right.clamp(0, width - 1)
        image = torch.arange(len(planes)).view(-1, 1, 1, 1)
        return planes.permute(0, 2, 3, 1).reshape(len(planes), height * width, -1)[image, index]

    def dense(self) -> Tensor:
        """The rows as whole planes, (N, R, C, H, W)."""
        return self.spread().values.permute(0, 1, 4, 2, 3)

    def spread(self) -> Windows:
        """The same rows as windows that cover the whole plane."""
        if self.covers:
            return self
        channels, height, width = self.plane
        count, rows = self.top.shape
        down, right = self._places()
        index = down.clamp(0, height - 1) * width + right.clamp(0, width - 1)
        flat = self.values.new_zeros(count, rows, height * width, channels)
        # Elements beyond the border are zero, so that it does not matter where they are added.
        where = index.flatten(2)[..., None].expand(-1, -1, -1, channels)
        flat = flat.scatter_add(2, where, self.values.flatten(2, 3))
        origin = torch.zeros_like(self.top)
        return Windows(flat.view(count, rows, height, width, channels), origin, origin, self.plane, covers=True)

    def add(self, other: Windows | Tensor) -> Windows:
        """The sum of two sets of rows; windows that stand apart by the same shift everywhere stay windows."""
        if isinstance(other, Tensor):
            other = Windows.whole(other)
        down, right = other.top - self.top, other.left - self.left
        together = not (self.covers or other.covers) and (down == down[0, 0]).all() and (right == right[0, 0]).all()
        if not together:
            one, two = self.spread(), other.spread()
            return replace(one, values=one.values + two.values)
        shift = int(down[0, 0]), int(right[0, 0])
        sizes = self.size, other.size
        start = [min(0, step) for step in shift]
        end = [max(own, step + its) for own, its, step in zip(*sizes, shift, strict=True)]
        total = self.values.new_zeros(
            *self.values.shape[:2], end[0] - start[0], end[1] - start[1], self.values.shape[4]
        )
        for part, offset in ((self, (0, 0)), (other, shift)):
            top, left = offset[0] - start[0], offset[1] - start[1]
            total[:, :, top : top + part.size[0], left : left + part.size[1]] += part.values
        return Windows(total, self.top + start[0], self.left + start[1], self.plane)
