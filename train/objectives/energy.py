"""Energy with margins."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor
from torch.nn import functional as F

from certood.scores import Energy, Score
from certood.train.objectives.base import Finite, MarginIn, MarginOut, Objective, Weight


@dataclass(frozen=True)
class EnergyMargin(Objective):
    """Squared hinges that push ID energy below m_in and outliers' energy above m_out (Liu et al., NeurIPS 2020, eq. 8)."""

    weight: Weight = 0.1
    margin_in: Annotated[MarginIn, Finite] = -23.0
    margin_out: Annotated[MarginOut, Finite] = -5.0

    @property
    def score(self) -> Score:
        """Energy."""
        return Energy()

    def outlier_term(self, scores_in: Tensor, scores_out: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """mean relu(S − m_in)² over ID images plus mean relu(m_out − S)² over outliers."""
        return F.relu(scores_in - self.margin_in).square().mean() + F.relu(self.margin_out - scores_out).square().mean()
