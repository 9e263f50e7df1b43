"""An extra class that outliers belong to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certood.scores import AbsentClass, AbsentClassLogProbability, Score
from certood.train.objectives.base import MarginIn, MarginOut, Objective, Weight


@dataclass(frozen=True)
class AbsentClassTarget(Objective):
    """An extra, last class that outliers belong to: mean −log softmax(f)_K (Mohseni et al., AAAI 2020; NTOM; DOS)."""

    weight: Weight = 1.0
    margin_in: MarginIn = 0.5
    margin_out: MarginOut = 0.5

    absent_class: ClassVar[bool] = True

    @property
    def score(self) -> Score:
        """Probability of the extra class."""
        return AbsentClass()

    @property
    def trained_score(self) -> Score:
        """Log-probability of the extra class."""
        return AbsentClassLogProbability()

    def outlier_term(self, scores_in: Tensor, scores_out: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of outliers to the last class."""
        return -scores_out.mean()
