"""Cross-entropy alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certood.scores import Energy, Score
from certood.train.objectives.base import MarginIn, MarginOut, Objective


@dataclass(frozen=True)
class CrossEntropyOnly(Objective):
    """No outlier term; with a gradient term, its gates are always open unless margins are given."""

    margin_in: MarginIn = math.inf
    margin_out: MarginOut = -math.inf

    weight: ClassVar[float] = 0.0
    needs_outliers: ClassVar[bool] = False

    @property
    def score(self) -> Score:
        """Energy."""
        return Energy()

    def outlier_term(self, scores_in: Tensor, scores_out: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """Zero."""
        return scores_out.new_zeros(())
