"""The most ID-like outliers."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from certood.train.samplers.base import Sampler, finite


@dataclass(frozen=True)
class GreedySampler(Sampler):
    """The `count` candidates of lowest score (informative outlier mining; NTOM: Chen et al., ECML 2021)."""

    needs_scores: ClassVar[bool] = True

    def __call__(
        self,
        scores: Tensor,
        features: Tensor | None,
        count: int,
        generator: torch.Generator,
        id_features: Tensor | None = None,
    ) -> Tensor:
        """Indices of the picked candidates."""
        lowest: Tensor = finite(scores).topk(min(count, len(scores)), largest=False).indices
        return lowest
