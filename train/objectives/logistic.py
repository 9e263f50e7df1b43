"""Energy on the right side of a learned threshold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional as F

from certood.scores import Energy, Score
from certood.train.objectives.base import Objective, number


@dataclass(frozen=True)
class LogisticEnergy(Objective):
    """κ·[mean softplus(S(x_in) − g) + mean softplus(g − S(x_out))]: binary cross-entropy of the energy, with a learned g.

    It is never flat, so that it still trains where certified bounds are far from every margin. The gates of a gradient
    term open at g unless margins are given.
    """

    kappa: Annotated[float, Field(ge=0, allow_inf_nan=False, description="κ, the weight of the outlier term.")] = 0.5
    start: Annotated[float, Field(allow_inf_nan=False, description="g before training, in units of the score.")] = -4.3
    margin_in: Annotated[
        float | None, AfterValidator(number), Field(description="m_in, in units of the score; g if absent.")
    ] = None
    margin_out: Annotated[
        float | None, AfterValidator(number), Field(description="m_out, in units of the score; g if absent.")
    ] = None

    @property
    def weight(self) -> float:
        """κ."""
        return self.kappa

    @property
    def score(self) -> Score:
        """Energy."""
        return Energy()

    @property
    def learned(self) -> Mapping[str, float]:
        """g."""
        return {"g": self.start}

    def margins(self, learned: Mapping[str, Tensor]) -> tuple[float | Tensor, float | Tensor]:
        """The given margins, and g where none is given."""
        g = learned["g"].detach()
        return (
            g if self.margin_in is None else self.margin_in,
            g if self.margin_out is None else self.margin_out,
        )

    def outlier_term(self, scores_in: Tensor, scores_out: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """mean softplus(S − g) over ID images plus mean softplus(g − S) over outliers."""
        g = learned["g"]
        return F.softplus(scores_in - g).mean() + F.softplus(g - scores_out).mean()
