"""Uniform targets on outliers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from certood.scores import MSP, Score, UniformLogLikelihood
from certood.train.objectives.base import MarginIn, MarginOut, Objective, Weight


@dataclass(frozen=True)
class OutlierExposure(Objective):
    """Uniform targets on outliers: mean of −(1/K) Σₖ log softmax(f)ₖ (Hendrycks et al., ICLR 2019, eq. 2).

    The score is MSP, as published; gates of a gradient term are always open unless margins are given.
    """

    weight: Weight = 0.5
    margin_in: MarginIn = math.inf
    margin_out: MarginOut = -math.inf

    @property
    def score(self) -> Score:
        """MSP."""
        return MSP()

    @property
    def trained_score(self) -> Score:
        """Mean log-probability over the classes."""
        return UniformLogLikelihood()

    def outlier_term(self, scores_in: Tensor, scores_out: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy to the uniform distribution, averaged over the outliers."""
        return -scores_out.mean()
