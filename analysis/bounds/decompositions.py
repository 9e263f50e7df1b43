"""ATen operations as functions of simpler ones that can be bounded: one plain torch function each.

torch.export traces them in place of the operation, for any of its overloads; a function may return NotImplemented for arguments
with which the operation stays as it is. `x.shape[0]` may be the size of the batch, which is not known then.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

DECOMPOSITIONS: dict[str, Callable[..., Any]] = {}


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """The table that torch.export takes: every overload that computes a new tensor."""
    found: dict[Any, Callable[..., Any]] = {}
    for name, function in DECOMPOSITIONS.items():
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            if not any(part.is_out for part in getattr(packet, overload)._schema.arguments):
                found[getattr(packet, overload)] = function
    return found


def unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    """Single slices."""
    return [x.select(dim, place) for place in range(x.shape[dim])]


def split(x: Tensor, split_size: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    """Slices of a size, the last one smaller, or of sizes."""
    if isinstance(split_size, int):
        return [x.narrow(dim, at, min(split_size, x.shape[dim] - at)) for at in range(0, x.shape[dim], split_size)]
    starts = [sum(split_size[:place]) for place in range(len(split_size))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, split_size, strict=True)]


def chunk(x: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    """So many slices of a size, the last one smaller."""
    return split(x, -(-x.shape[dim] // chunks), dim)


DECOMPOSITIONS |= {
    "unbind": unbind,
    "split": split,
    "split_with_sizes": split,
    "chunk": chunk,
}
