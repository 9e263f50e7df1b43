"""Outliers at random."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomSampler:
    """`count` candidates at random."""

    needs_scores: ClassVar[bool] = False

    def __call__(self, scores: Tensor, features: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the picked candidates."""
        return torch.randperm(len(scores), device=scores.device, generator=generator)[:count]
