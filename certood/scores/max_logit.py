"""The maximum-logit score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.scores.base import Score
from certood.scores.conditions import LogitCondition, logsumexp_condition
from certood.scores.log_probabilities import pair_bounds, rounding
from certood.scores.protocol import GradientBox, Interval, Logits, ScoreRows, Side, Tangents, rows_upper


@dataclass(frozen=True)
class MaxLogit(Score):
    """Maximum logit S = −maxₖ fₖ (Hendrycks et al., ICML 2022)."""

    name = "max-logit"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        return -logits.amax(dim=-1)

    def class_scores(self, logits: Tensor) -> Tensor:
        """−f_k."""
        return -logits

    def rows(self, logits: Logits, side: Side) -> ScoreRows:
        """Rows that bound the score: from above −w·z for every w of the simplex, and every −z_k; from below all −z_k at once."""
        count, columns = logits.centre.shape
        units = -logits.units.expand(count, 1, columns, columns)
        if side == "lower":
            return ScoreRows(units.transpose(1, 2), logits.centre.new_zeros(count, columns, 1))
        rows = torch.cat([units, self._mean(logits).rows], 2)
        return ScoreRows(rows, torch.zeros_like(rows[..., 0]), self._mean(logits).tangents)

    def bounds(self, logits: Logits) -> Interval:
        """Lower and upper bounds (N,), from the box of the logits and their mean."""
        box = logits.box
        return Interval(-box.upper.amax(1), torch.minimum(-box.lower.amax(1), rows_upper(logits, self._mean(logits))))

    def gradient_box(self, logits: Logits) -> GradientBox:
        """∂S/∂z is a mixture of −e_k over the classes that may be the largest."""
        box = logits.box
        highest = box.lower.amax(1, keepdim=True)
        possible = box.upper >= highest - rounding(highest) * (1 + highest.abs())
        certain = possible & (possible.sum(1, keepdim=True) == 1)
        return GradientBox(-possible.to(highest.dtype), -certain.to(highest.dtype), -1.0)

    def lipschitz(self, outputs: int) -> float:
        """The constant one: no logit changes by more."""
        return 1.0

    def condition(self, logits: Sequence[float], threshold: float, *, accepted: bool) -> LogitCondition:
        """f_k ≥ −γ for the largest logit k at the image, or max f < −γ."""
        return logsumexp_condition(logits, threshold, 0.0, accepted=accepted)

    def box_bounds(self, lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
        """Exact on a box; max z = z_k + max_j(z_j − z_k) for every k where differences are known."""
        low, high = lower.amax(1), upper.amax(1)
        if differences is not None:
            least, most = (part.amax(2) for part in pair_bounds(lower, upper, differences))
            low, high = torch.maximum(low, (lower + least).amax(1)), torch.minimum(high, (upper + most).amin(1))
        return Interval(-high, -low)

    def _mean(self, logits: Logits) -> ScoreRows:
        """−w·z, w the softmax at the centre."""
        return Tangents(-1, torch.zeros_like(logits.centre[:1]), logits.centre, temperature=0.0).touching()
