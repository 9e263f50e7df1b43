"""Informative outliers of many kinds (DOS)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from certood.train.kmeans import kmeans
from certood.train.samplers.base import Sampler, cluster_extremes, directions, finite


@dataclass(frozen=True)
class DiverseSampler(Sampler):
    """DOS (Jiang et al., ICLR 2024, arXiv 2306.02031): one informative outlier of each of `count` clusters.

    Of the candidates, the share `band` with the lowest scores is clustered by L2-normalised features; the lowest score of
    each cluster is picked.
    """

    band: Annotated[
        float, Field(gt=0, le=1, description="Share of the candidates, of lowest score, that is clustered.")
    ] = 0.5
    restarts: Annotated[int, Field(ge=1, description="Starts of k-means, of which the best is taken.")] = 1

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
        size = min(len(scores), max(count, round(self.band * len(scores))))
        band = finite(scores).topk(size, largest=False).indices
        clusters = kmeans(directions(features)[band], count, restarts=self.restarts, generator=generator).labels
        lowest, _ = cluster_extremes(clusters, scores[band])
        return band[lowest]
