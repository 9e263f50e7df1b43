"""Outliers from both ends of every cluster (GReg+)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from certood.train.kmeans import kmeans
from certood.train.samplers.base import Sampler, cluster_extremes, directions, finite


@dataclass(frozen=True)
class ClusterSampler(Sampler):
    """GReg+ (Sharifi et al., ECCV 2024): the lowest and the highest score of each of `count` clusters.

    k-means runs on L2-normalised features of all candidates. Low picks violate their margin and feed L_S; high picks are
    right already and feed L_∇. A cluster of one gives one pick, so at most 2·count are picked; only one end gives count at most.
    """

    restarts: Annotated[
        int, Field(ge=1, description="Starts of k-means, of which the best is taken; the authors have 3.")
    ] = 1
    ends: Annotated[
        Literal["both", "low", "high"],
        Field(description="Which ends of every cluster by score are picked; GReg+ takes both."),
    ] = "both"

    needs_scores: ClassVar[bool] = True

    def __call__(
        self,
        scores: Tensor,
        features: Tensor | None,
        count: int,
        generator: torch.Generator,
        id_features: Tensor | None = None,
    ) -> Tensor:
        """Indices of the picked candidates, in ascending order."""
        finite(scores)
        clusters = kmeans(directions(features), count, restarts=self.restarts, generator=generator).labels
        low, high = cluster_extremes(clusters, scores)
        picked: Tensor = {"both": torch.cat([low, high]), "low": low, "high": high}[self.ends].unique()
        return picked
