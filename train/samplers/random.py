"""Outliers at random."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from certood.train.samplers.base import Sampler


@dataclass(frozen=True)
class RandomSampler(Sampler):
    """`count` candidates at random."""

    needs_scores: ClassVar[bool] = False

    def __call__(
        self,
        scores: Tensor,
        features: Tensor | None,
        count: int,
        generator: torch.Generator,
        id_features: Tensor | None = None,
    ) -> Tensor:
        """Indices of the picked candidates."""
        return torch.randperm(len(scores), device=scores.device, generator=generator)[:count]
