"""Rows of coefficients that are zero outside a small window of a plane: rows before and after convolutions.

A neuron of a convolution reads its receptive field only. Rows that stay windows cost what that field costs, not what the plane
does. Channels come last, so that gathering copies whole runs of memory and a transposed convolution is one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Windows:
    """Rows over planes of shape (C, H, W): `values` (N, R, h, w, C) at `top`, `left` (N, R), which may be negative.

    Values beyond the border of the plane mean nothing; they are zero where `clean` says so. Rows that are whole planes, as
    `covers` says, stand at 0, 0. With a `step` s above 1 everything is stored by phases, as if the plane were
    (s·s·C, H/s, W/s): the place (s·i + a, s·j + b) of channel c is at (i, j, (a·s + b)·C + c).
    """

    values: Tensor
    top: Tensor
    left: Tensor
    plane: torch.Size
    covers: bool = False
    clean: bool = False
    step: int = 1

    @staticmethod
    def whole(rows: Tensor) -> Windows:
        """Rows (N, R, C, H, W) of whole planes."""
        origin = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        return Windows(rows.permute(0, 1, 3, 4, 2), origin, origin, rows.shape[2:], covers=True, clean=True)

    @staticmethod
    def units(neurons: Tensor, plane: torch.Size, dtype: torch.dtype) -> Windows:
        """The rows that read off single neurons, given by their flat indices (N, R)."""
        channels, height, width = plane
        values = torch.zeros(*neurons.shape, 1, 1, channels, dtype=dtype, device=neurons.device)
        values.view(*neurons.shape, channels).scatter_(2, (neurons // (height * width))[..., None], 1.0)
        return Windows(values, neurons // width % height, neurons % width, plane, clean=True)

    def __neg__(self) -> Windows:
        return replace(self, values=-self.values)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the window."""
        return self.values.shape[2], self.values.shape[3]

    def split(self, count: int) -> list[Windows]:
        """The rows in parts of at most so many."""
        parts = zip(self.values.split(count, 1), self.top.split(count, 1), self.left.split(count, 1), strict=True)
        return [Windows(*part, self.plane, self.covers, self.clean, self.step) for part in parts]

    def repeated(self, values: Tensor, times: int) -> Windows:
        """Other values at the same places, once or one after the other."""
        if times == 1:
            return replace(self, values=values)
        return replace(self, values=values, top=self.top.repeat(1, times), left=self.left.repeat(1, times))

    def to(self, dtype: torch.dtype) -> Windows:
        """The rows in another precision."""
        return replace(self, values=self.values.to(dtype))

    def scaled(self, factor: Tensor | float) -> Windows:
        """The rows times what broadcasts against (N, R, h, w, C)."""
        return replace(self, values=self.values * factor)

    def channels(self, start: int, count: int) -> Windows:
        """The part of some channels."""
        rows = self.unphased()
        return replace(rows, values=rows.values.narrow(4, start, count), plane=torch.Size((count, *self.plane[1:])))

    @cached_property
    def margins(self) -> tuple[int, int, int, int]:
        """How far windows reach beyond the border: left, right, top, bottom, in places of `values`."""
        found = []
        for start, size, extent in ((self.left, self.size[1], self.plane[2]), (self.top, self.size[0], self.plane[1])):
            found += [max(0, -int(start.min())), max(0, int(start.max()) + size - extent // self.step)]
        return found[0], found[1], found[2], found[3]

    @cached_property
    def positions(self) -> Tensor:
        """Where every element of the windows, one after the other, lies in `padded` planes."""
        before, after, above, below = self.margins
        width = self.plane[2] // self.step + before + after
        size = (self.plane[1] // self.step + above + below) * width
        device = self.top.device
        offsets = torch.arange(self.size[0], device=device)[:, None] * width + torch.arange(self.size[1], device=device)
        start = (self.top + above) * width + self.left + before
        if len(start) > 1:
            start = start + size * torch.arange(len(start), device=device)[:, None]
        return (start.reshape(-1, 1) + offsets.view(1, -1)).flatten()

    def padded(self, planes: Tensor) -> Tensor:
        """Planes (N, C, H, W) with zeros around them, channels last, as a list of positions: (positions, channels)."""
        return F.pad(self.channels_last(planes)[:, 0], (0, 0, *self.margins)).flatten(0, 2)

    def gather(self, planes: Tensor) -> Tensor:
        """The values (N, R, h, w, C) of `padded` planes under the windows, zero beyond the border."""
        return planes.index_select(0, self.positions).view(*self.top.shape, *self.size, planes.shape[1])

    def channels_last(self, plane: Tensor) -> Tensor:
        """A plane (N, C, H, W), or (N, R, C, H, W), in the layout of rows that cover it: (N, 1 or R, h, w, C)."""
        plane = plane if plane.ndim == 5 else plane[:, None]
        if self.step > 1:
            plane = plane.unflatten(4, (-1, self.step)).unflatten(3, (-1, self.step)).permute(0, 1, 3, 5, 4, 6, 2)
            return plane.flatten(4)
        return plane.permute(0, 1, 3, 4, 2)

    def cleaned(self) -> Windows:
        """The same rows with zeros beyond the border."""
        if self.clean:
            return self
        if not any(self.margins):
            return replace(self, clean=True)
        inside = self.gather(self.padded(self.values.new_ones(len(self.top), 1, *self.plane[1:])))
        if self.step > 1:
            inside = inside[..., :1]
        return replace(self, values=self.values * inside, clean=True)

    def dense(self) -> Tensor:
        """The rows as whole planes, (N, R, C, H, W)."""
        return self.spread().values.permute(0, 1, 4, 2, 3)

    def unphased(self) -> Windows:
        """The same rows without phases."""
        if self.step == 1:
            return self
        parts = self.values.unflatten(4, (self.step, self.step, self.plane[0])).permute(0, 1, 2, 4, 3, 5, 6)
        values = parts.reshape(*self.top.shape, self.size[0] * self.step, self.size[1] * self.step, self.plane[0])
        return replace(self, values=values, top=self.top * self.step, left=self.left * self.step, step=1)

    def spread(self) -> Windows:
        """The same rows as windows that cover the whole plane, without phases."""
        if self.step > 1:
            return self.unphased().spread()
        if self.covers:
            return self
        channels, height, width = self.plane
        count, rows = self.top.shape
        before, after, above, below = self.margins
        shape = height + above + below, width + before + after
        single = replace(
            self, values=self.values.flatten(0, 1)[:, None], top=self.top.reshape(-1, 1), left=self.left.reshape(-1, 1)
        )
        flat = self.values.new_zeros(count * rows * shape[0] * shape[1], channels)
        flat.index_copy_(0, single.positions, self.values.flatten(0, 3))
        values = flat.view(count, rows, *shape, channels)[:, :, above : above + height, before : before + width]
        origin = torch.zeros_like(self.top)
        return Windows(values, origin, origin, self.plane, covers=True, clean=True)

    def add(self, other: Windows | Tensor) -> Windows:
        """The sum of two sets of rows; windows that stand apart by the same shift everywhere stay windows."""
        if isinstance(other, Tensor):
            other = Windows.whole(other)
        if self.step != other.step:
            return self.unphased().add(other.unphased())
        if self.covers and other.covers:
            return replace(self, values=self.values + other.values)
        down, right = other.top - self.top, other.left - self.left
        together = not (self.covers or other.covers) and (down == down[0, 0]).all() and (right == right[0, 0]).all()
        if not together:
            return self.spread().add(other.spread())
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
        clean = self.clean and other.clean
        return replace(self, values=total, top=self.top + start[0], left=self.left + start[1], clean=clean)
