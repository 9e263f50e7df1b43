"""Certified oscillation of the score."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from certood.train.certified.base import CertifiedTerm, ScoreBounds


@dataclass(frozen=True)
class Oscillation(CertifiedTerm):
    """w·mean log1p((S_ub − S_lb)/2ε) over outliers, and over ID images where these are bounded.

    (S_ub − S_lb)/2ε bounds the mean slope along every segment through the centre; the logarithm keeps the term from
    drowning all others while bounds are loose.
    """

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Weight of the certified oscillation.")] = 0.1
    modifies_objective = False

    def added_term(self, inside: ScoreBounds, outside: ScoreBounds, eps: float) -> Tensor:
        """mean log1p((S_ub − S_lb)/2ε) over both sides; zero for images that are not bounded."""
        sides = ((side.upper - side.lower) / (2 * eps) for side in (inside, outside))
        return sum((side.clamp_min(0).log1p().mean() for side in sides), start=outside.clean.new_zeros(()))
