"""Auxiliary outliers: one or several image sets, each drawn from at its own weight."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from certood.data.source import ImageSource, require_same_shape
from certood.errors import DataError


class Pool(NamedTuple):
    """Indices (n,) of the images that are drawn together, and the weight of a draw from them."""

    indices: Tensor
    weight: float


@dataclass(frozen=True)
class AuxiliarySet:
    """Several image sets (`parts`) of one shape as one, without labels; see `joined`.

    `order` (N,) says which image of the parts, counted through, stands at each place.
    """

    parts: tuple[ImageSource, ...]
    weights: tuple[float, ...]
    order: Tensor
    labels: None = None
    classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The names of the parts."""
        return ", ".join(part.name for part in self.parts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) in pixels."""
        return self.parts[0].shape

    @property
    def in_memory(self) -> bool:
        """Whether all parts are."""
        return all(part.in_memory for part in self.parts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the parts' fingerprints, their weights, and the order."""
        digest = hashlib.sha256(repr(([part.fingerprint for part in self.parts], self.weights)).encode())
        digest.update(self.order.numpy().data)
        return digest.hexdigest()

    @property
    def pools(self) -> list[Pool]:
        """The images of every part that has any, and the weight of a draw from it."""
        owner, _ = self._places(torch.arange(len(self)))
        found = [Pool((owner == index).nonzero().flatten(), weight) for index, weight in enumerate(self.weights)]
        return [pool for pool in found if len(pool.indices)]

    def __len__(self) -> int:
        return len(self.order)

    def batch(self, indices: Tensor) -> Tensor:
        """The uint8 images (n, C, H, W) at these int64 indices (n,)."""
        owner, place = self._places(indices)
        images: Tensor | None = None
        for index, part in enumerate(self.parts):
            chosen = owner == index
            if not chosen.any():
                continue
            found = part.batch(place[chosen])
            if images is None:
                images = found.new_empty(len(indices), *self.shape)
            images[chosen.to(images.device)] = found.to(images.device)
        return torch.empty(0, *self.shape, dtype=torch.uint8) if images is None else images

    def subset(self, indices: Tensor) -> Self:
        """The same sets restricted to these int64 indices, in their order; weights stay."""
        return replace(self, order=self.order[indices])

    def relabelled(self, labels: Tensor | None, classes: tuple[str, ...]) -> Self:
        """Not possible: auxiliary outliers have no labels."""
        raise DataError(f"{self.name}: auxiliary outliers have no labels")

    def to(self, device: torch.device) -> Self:
        """The same sets, those in memory on this device."""
        return replace(self, parts=tuple(part.to(device) for part in self.parts))

    def _places(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Which part each index is in, and where in that part."""
        ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)
        counted = self.order[indices]
        owner = torch.searchsorted(ends, counted, right=True)
        return owner, counted - torch.cat([ends.new_zeros(1), ends])[owner]


def joined(parts: Sequence[ImageSource], weights: Sequence[float]) -> AuxiliarySet:
    """These sets as auxiliary outliers: of all candidates, each set gives the share weight / (sum of weights).

    The share does not depend on how many images a set has. Raises DataError where shapes differ.
    """
    require_same_shape(parts)
    return AuxiliarySet(tuple(parts), tuple(weights), torch.arange(sum(map(len, parts))))


def draw(pools: Sequence[Pool], count: int, generator: torch.Generator) -> Tensor:
    """A shuffled stream of `count` indices (count,): of each pool its share by weight, in whole shuffled passes over it.

    Shares that are not whole are rounded down, and the rest goes to the pools with the largest remainders.
    """
    total = sum(pool.weight for pool in pools)
    exact = [count * pool.weight / total for pool in pools]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(pools)), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: count - sum(shares)]:
        shares[index] += 1
    streams = []
    for pool, share in zip(pools, shares, strict=True):
        passes = -(-share // len(pool.indices))
        order = [torch.randperm(len(pool.indices), generator=generator) for _ in range(passes)]
        streams.append(pool.indices[torch.cat(order)[:share]] if order else pool.indices[:0])
    if len(streams) == 1:
        return streams[0]
    return torch.cat(streams)[torch.randperm(count, generator=generator)]
