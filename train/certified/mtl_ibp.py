"""Attacked and certified scores together."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from certood.train.certified.base import CertifiedTerm, OutlierTerm, ScoreBounds


@dataclass(frozen=True)
class MtlIbp(CertifiedTerm):
    """(1 − α)·L_S of attacked scores + α·L_S of bounds (MTL-IBP: De Palma et al., ICLR 2024, arXiv 2305.13991, eq. 8).

    With a small α networks are trained that linear bounds certify and intervals do not.
    """

    reads_clean_outliers = False

    alpha: Annotated[float, Field(ge=0, le=1, description="α, the share of the certified loss.")] = 0.5
    attack_steps: Annotated[int, Field(ge=1, description="Projected gradient steps of the attack.")] = 8

    def outlier_term(self, term: OutlierTerm, inside: ScoreBounds, outside: ScoreBounds) -> Tensor:
        """The convex combination."""
        attacked = term(inside.attacked, outside.attacked)
        return (1 - self.alpha) * attacked + self.alpha * term(inside.upper, outside.lower)
