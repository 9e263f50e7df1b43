"""Where the batch stands in a tensor of the user's network, and what one image's part of it is.

The nodes of a graph hold (N, *sample); a network may move the batch axis, or fold other axes into it ((N·windows, …) in Swin,
(tokens, N·heads, …) in nn.MultiheadAttention). A layout says how to go from one form to the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.errors import UnsupportedOperation


@dataclass(frozen=True)
class Layout:
    """A tensor of `shape` where the batch has one image; with N images its axis `axis` has outer·N·inner elements."""

    shape: torch.Size
    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def is_folded(self) -> bool:
        """Whether other axes are folded into that of the batch."""
        return self.outer * self.inner > 1

    @property
    def is_plain(self) -> bool:
        """Whether it is (N, *sample) already."""
        return self.axis == 0 and not self.is_folded

    @property
    def sample(self) -> torch.Size:
        """The shape of one image's part: the axis of the batch is left out unless others are folded into it."""
        return self.shape if self.is_folded else torch.Size((*self.shape[: self.axis], *self.shape[self.axis + 1 :]))

    def batch(self, samples: Tensor) -> Tensor:
        """The tensor of the network, from (N, *sample)."""
        if not self.is_folded:
            return samples.movedim(0, self.axis)
        apart: Tensor = samples.unflatten(self.axis + 1, (self.outer, self.inner))
        return apart.movedim(0, self.axis + 1).flatten(self.axis, self.axis + 2)

    def samples(self, batch: Tensor) -> Tensor:
        """(N, *sample), from the tensor of the network."""
        if not self.is_folded:
            return batch.movedim(self.axis, 0)
        apart: Tensor = batch.unflatten(self.axis, (self.outer, -1, self.inner))
        return apart.movedim(self.axis + 1, 0).flatten(self.axis + 1, self.axis + 2)

    def sample_axis(self, axis: int) -> int:
        """An axis of the network's tensor as one of a sample; raises UnsupportedOperation for that of the batch."""
        if axis % len(self.shape) == self.axis:
            raise UnsupportedOperation("along the batch axis")
        return self.kept_axis(axis)

    def kept_axis(self, axis: int) -> int:
        """An axis of the network's tensor, which is not that of the batch, as one of a sample."""
        axis %= len(self.shape)
        return axis if self.is_folded else axis - (axis > self.axis)

    def constant(self, tensor: Tensor) -> Tensor:
        """A constant that broadcasts against the network's tensor, so that it broadcasts against (N, *sample)."""
        missing = len(self.shape) - tensor.ndim
        if missing > self.axis or self.is_folded:
            # Folded axes stay where they are, and a batch axis that is missing on the left needs no removing.
            return tensor
        place = self.axis - missing
        if tensor.shape[place] != 1:
            raise UnsupportedOperation("with a constant that differs between the images of a batch")
        return tensor.squeeze(place)

    def reshaped(self, shape: torch.Size, axis: int) -> "Layout | None":
        """The layout after a reshape that puts the batch into `axis`; None where images do not stay apart."""
        before = math.prod(self.shape[: self.axis]) * self.outer
        outer, rest = divmod(before, math.prod(shape[:axis]))
        if rest or not outer or shape[axis] % outer:
            return None
        return Layout(shape, axis, outer, shape[axis] // outer)

    def carried(self, shape: torch.Size, axis: int) -> "Layout | None":
        """The layout after an operation that keeps the batch axis in one piece; None where its size has changed."""
        return Layout(shape, axis, self.outer, self.inner) if shape[axis] == self.outer * self.inner else None


def described(shape: Sequence[int | torch.SymInt]) -> tuple[torch.Size, int | None]:
    """A shape with a symbolic batch where that is one image, and the axis of the batch: None without or with several."""
    places = [place for place, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    return torch.Size(int(number(size)) for size in shape), places[0] if len(places) == 1 else None


def number(value: int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool) -> int | float | bool:
    """A number that may depend on the size of the batch, for a batch of one image."""
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value
    expression = value.node.expr
    found = expression.subs(dict.fromkeys(expression.free_symbols, 1))
    if isinstance(value, torch.SymBool):
        return bool(found)
    return int(found) if isinstance(value, torch.SymInt) else float(found)
