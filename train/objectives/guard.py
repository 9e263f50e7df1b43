"""A guard: one output that tells ID images from outliers, and classifies nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from certood.scores import Energy, Score
from certood.train.objectives.base import MarginIn, MarginOut, Objective, Weight


@dataclass(frozen=True)
class GuardOutput(Objective):
    """mean softplus(G(x_in)) + mean softplus(−G(x_out)): binary cross-entropy of a guard's score G = −f, f its one output.

    There is no cross-entropy over classes: the whole network is spent on what is certified. Trained only beside the
    detector that it guards.
    """

    weight: Weight = 1.0
    margin_in: MarginIn = 0.0
    margin_out: MarginOut = 0.0

    classifies: ClassVar[bool] = False

    @property
    def score(self) -> Score:
        """Energy, which of one logit f is −f."""
        return Energy()

    def outlier_term(self, scores_in: Tensor, scores_out: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """Both means."""
        return F.softplus(scores_in).mean() + F.softplus(-scores_out).mean()
