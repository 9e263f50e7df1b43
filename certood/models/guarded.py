"""A classifier and the certified guard beside it, as one network."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GuardDescription:
    """What a guard is built from, besides the image shape that it shares: architecture, options, normalisation per channel."""

    architecture: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)


class GuardedNetwork(nn.Module):
    """Two networks on the same images: the outputs of `base`, untouched, and after them the one output of `guard`.

    Both take images (N, C, H, W) in [0, 1]. The guard's output is high for in-distribution images, as logits are.
    """

    def __init__(self, base: nn.Module, guard: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.guard = guard

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (N, K + 1) of images (N, C, H, W) in [0, 1]."""
        return torch.cat([self.base(images), self.guard(images)], dim=1)
