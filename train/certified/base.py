"""What a certified term is: how bounds of the score over balls enter the loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

Side = Literal["outliers", "both"]
OutlierTerm = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ScoreBounds:
    """What is known of the trained scores of some images over balls of radius ε: values, bounds and attacked values, (N,).

    Of images that are not bounded all are the values themselves. Where nothing reads the values of bounded images (see
    `CertifiedTraining.reads_clean_outliers`), their lower bounds stand in their place.
    """

    clean: Tensor
    lower: Tensor
    upper: Tensor
    attacked: Tensor

    @classmethod
    def of_points(cls, scores: Tensor) -> "ScoreBounds":
        """The scores themselves, as bounds of balls without radius, for images that are not bounded."""
        return cls(scores, scores, scores, scores)

    def of_share(self, share: float) -> "ScoreBounds":
        """Bounds of the share of the images whose lower bound is largest, the values of all others (GOOD: Bitterwolf et al.,
        NeurIPS 2020, arXiv 2007.08473, section 3)."""
        count = max(round(share * len(self.lower)), 1)
        if count >= len(self.lower):
            return self
        chosen = torch.zeros_like(self.lower, dtype=torch.bool)
        chosen[self.lower.detach().topk(count).indices] = True
        parts = (torch.where(chosen, part, self.clean) for part in (self.lower, self.upper, self.attacked))
        return replace(self, **dict(zip(("lower", "upper", "attacked"), parts, strict=True)))


class CertifiedTerm:
    """How bounds enter the loss; a frozen dataclass of parameters.

    It may hand the objective's outlier term other scores than those of the images themselves, and may add a term of its own.
    """

    modifies_objective: ClassVar[bool] = True
    """Whether it acts through the objective's outlier term, so that there must be one."""

    reads_clean_outliers: ClassVar[bool] = True
    """Whether it reads the values of outliers themselves; a step need not compute them otherwise."""

    attack_steps: int = 0
    """Steps of the attack whose result it reads; none by default."""

    @property
    def weight(self) -> float:
        """The weight of the term that is added."""
        return 0.0

    def outlier_term(self, term: OutlierTerm, inside: ScoreBounds, outside: ScoreBounds) -> Tensor:
        """L_S, a scalar, from the objective's term of the scores of ID images and of outliers; by default the clean one."""
        return term(inside.clean, outside.clean)

    def added_term(self, inside: ScoreBounds, outside: ScoreBounds, eps: float) -> Tensor:
        """The term that is added, a scalar, for bounds over balls of radius ε > 0; by default zero."""
        return outside.lower.new_zeros(())
