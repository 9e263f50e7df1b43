"""What a sampler is: which of a pool of candidate outliers enter the training step.

A sampler takes scores (n,), higher for more outlying, features (n, F), the number of outliers wanted, a generator, and where it
asks for them the features (N, F) of the step's ID images; it returns int64 indices into the pool, none twice. Low scores are the
informative outliers: the network finds them ID-like.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.errors import CertoodError


class Sampler(ABC):
    """A frozen dataclass of hyper-parameters, called with the pool.

    With several processes every one calls it with the scores of all candidates and the same generator, so its picks must
    depend on nothing else.
    """

    needs_scores: ClassVar[bool]
    """Whether scores and features are looked at; candidates go through the network first only where they are."""

    needs_id_features: ClassVar[bool] = False
    """Whether the features of the step's ID images are looked at too, which then go through the network first as well."""

    @abstractmethod
    def __call__(
        self,
        scores: Tensor,
        features: Tensor | None,
        count: int,
        generator: torch.Generator,
        id_features: Tensor | None = None,
    ) -> Tensor:
        """Indices of the picked candidates; raises CertoodError where scores or features are not finite."""


def directions(features: Tensor | None) -> Tensor:
    """Features (n, F) scaled to length 1, which is what clustering samplers compare; raises CertoodError for None."""
    if features is None:
        raise CertoodError("this sampler clusters candidates by their features; none were given")
    return F.normalize(features, dim=1)


def finite(scores: Tensor) -> Tensor:
    """The scores themselves; raises CertoodError where one is not finite."""
    if not scores.isfinite().all():
        raise CertoodError(f"{int((~scores.isfinite()).sum())} of {len(scores)} candidate scores are not finite")
    return scores


def cluster_extremes(labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the lowest and of the highest score of every cluster that has members, clusters in ascending order."""
    by_score = scores.argsort(stable=True)
    order = by_score[labels[by_score].argsort(stable=True)]
    grouped = labels[order]
    change = grouped[1:] != grouped[:-1]
    edge = torch.ones(1, dtype=torch.bool, device=labels.device)
    return order[torch.cat([edge, change])], order[torch.cat([change, edge])]
