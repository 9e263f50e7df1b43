"""Moving numbers: splitting, joining, repeating, padding with a value."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.decompositions.table import decomposes


@decomposes("unbind")
def unbind(x: Tensor, dim: int = 0) -> Any:
    """Single slices."""
    return (
        NotImplemented if isinstance(x.shape[dim], torch.SymInt) else [x.select(dim, at) for at in range(x.shape[dim])]
    )


@decomposes("split", "split_with_sizes")
def split(x: Tensor, split_size: int | Sequence[int], dim: int = 0) -> Any:
    """Slices of a size, the last one smaller, or of sizes."""
    if isinstance(x.shape[dim], torch.SymInt):
        return NotImplemented
    if isinstance(split_size, int):
        return [x.narrow(dim, at, min(split_size, x.shape[dim] - at)) for at in range(0, x.shape[dim], split_size)]
    starts = [sum(split_size[:place]) for place in range(len(split_size))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, split_size, strict=True)]


@decomposes("chunk")
def chunk(x: Tensor, chunks: int, dim: int = 0) -> Any:
    """So many slices of a size, the last one smaller."""
    return NotImplemented if isinstance(x.shape[dim], torch.SymInt) else split(x, -(-x.shape[dim] // chunks), dim)


@decomposes("stack")
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Joined along a new axis."""
    return torch.cat([x.unsqueeze(dim) for x in tensors], dim)


@decomposes("repeat", "tile")
def repeat(x: Tensor, repeats: Sequence[Any]) -> Tensor:
    """Copies side by side along every axis."""
    x = x[(None,) * (len(repeats) - x.ndim)]
    for dim, times in enumerate(repeats, start=x.ndim - len(repeats)):
        if isinstance(times, torch.SymInt):
            x = x.expand(*x.shape[:dim], times, *x.shape[dim + 1 :])
        elif times != 1:
            x = torch.cat([x] * times, dim)
    return x


@decomposes("repeat_interleave")
def repeat_interleave(x: Tensor, repeats: Any, dim: int | None = None, **named: Any) -> Any:
    """Every element several times in a row."""
    if dim is None or not isinstance(repeats, int):
        return NotImplemented
    dim %= x.ndim
    spread = x.unsqueeze(dim + 1)
    return spread.expand(*x.shape[: dim + 1], repeats, *x.shape[dim + 1 :]).flatten(dim, dim + 1)


@decomposes("pad")
def pad(x: Tensor, sizes: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Padding with a value other than 0: the difference from it is padded with zeros."""
    return NotImplemented if mode != "constant" or not value else F.pad(x - value, list(sizes)) + value


@decomposes("constant_pad_nd")
def constant_pad(x: Tensor, sizes: Sequence[int], value: float = 0) -> Tensor:
    """Padding with a value, as `pad`."""
    return pad(x, sizes, "constant", value)
