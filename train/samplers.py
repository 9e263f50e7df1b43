"""Outlier samplers: which of a pool of candidates enter the training step.

A sampler takes scores (n,), higher for more outlying, features (n, F), the number of outliers wanted, and a generator; it
returns int64 indices into the pool, none twice. Low scores are the informative outliers: the network finds them ID-like.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.errors import CertoodError
from certood.models import Classifier
from certood.scores import Score
from certood.train.kmeans import kmeans


class Sampler(Protocol):
    """One interface for all; `needs_scores` says whether the candidates must go through the network first."""

    @property
    def needs_scores(self) -> bool:
        """Whether scores and features are looked at."""
        ...

    def __call__(self, scores: Tensor, features: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the picked candidates."""
        ...


@dataclass(frozen=True)
class RandomSampler:
    """`count` candidates at random."""

    needs_scores: bool = False

    def __call__(self, scores: Tensor, features: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the picked candidates."""
        return torch.randperm(len(scores), device=scores.device, generator=generator)[:count]


@dataclass(frozen=True)
class GreedySampler:
    """The `count` candidates of lowest score (informative outlier mining; NTOM: Chen et al., ECML 2021)."""

    needs_scores: bool = True

    def __call__(self, scores: Tensor, features: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the picked candidates."""
        lowest: Tensor = _finite(scores).topk(min(count, len(scores)), largest=False).indices
        return lowest


@dataclass(frozen=True)
class DiverseSampler:
    """DOS (Jiang et al., ICLR 2024, arXiv 2306.02031): one informative outlier of each of `count` clusters.

    Of the candidates, the share `band` with the lowest scores is clustered by L2-normalised features; the lowest score of
    each cluster is picked.
    """

    band: float = 0.5
    restarts: int = 1
    needs_scores: bool = True

    def __call__(self, scores: Tensor, features: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the picked candidates."""
        size = min(len(scores), max(count, round(self.band * len(scores))))
        band = _finite(scores).topk(size, largest=False).indices
        clusters = kmeans(_directions(features)[band], count, restarts=self.restarts, generator=generator).labels
        lowest, _ = cluster_extremes(clusters, scores[band])
        return band[lowest]


@dataclass(frozen=True)
class ClusterSampler:
    """GReg+ (Sharifi et al., ECCV 2024): the lowest and the highest score of each of `count` clusters.

    k-means runs on L2-normalised features of all candidates. Low picks violate their margin and feed L_S; high picks are
    right already and feed L_∇. A cluster of one gives one pick, so at most 2·count are picked.
    """

    restarts: int = 1
    needs_scores: bool = True

    def __call__(self, scores: Tensor, features: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the picked candidates, in ascending order."""
        _finite(scores)
        clusters = kmeans(_directions(features), count, restarts=self.restarts, generator=generator).labels
        picked: Tensor = torch.cat(cluster_extremes(clusters, scores)).unique()
        return picked


def cluster_extremes(labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the lowest and of the highest score of every cluster that has members, clusters in ascending order."""
    by_score = scores.argsort(stable=True)
    order = by_score[labels[by_score].argsort(stable=True)]
    grouped = labels[order]
    change = grouped[1:] != grouped[:-1]
    edge = torch.ones(1, dtype=torch.bool, device=labels.device)
    return order[torch.cat([edge, change])], order[torch.cat([change, edge])]


def score_candidates(model: Classifier, images: Tensor, score: Score, batch_size: int) -> tuple[Tensor, Tensor]:
    """Scores (n,) and penultimate features (n, F) of candidates (n, C, H, W), in eval mode and without gradients.

    The network is left in the mode in which it was found.
    """
    training = model.training
    model.eval()
    with torch.no_grad():
        features = torch.cat([model.features(part) for part in images.split(batch_size)]).float()
        scores = score(model.head(features).float())
    model.train(training)
    return scores, features


def _directions(features: Tensor | None) -> Tensor:
    if features is None:
        raise CertoodError("this sampler clusters candidates by their features; none were given")
    return F.normalize(features, dim=1)


def _finite(scores: Tensor) -> Tensor:
    if not scores.isfinite().all():
        raise CertoodError(f"{int((~scores.isfinite()).sum())} of {len(scores)} candidate scores are not finite")
    return scores
