"""The maximum softmax probability."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.scores.base import Score
from certood.scores.log_probabilities import (
    log_probability_bounds,
    pair_bounds,
    probability_bounds,
    probability_jacobian,
)
from certood.scores.logsumexp import chords
from certood.scores.protocol import GradientBox, Interval, Logits, ScoreRows, Side, Tangents, rows_upper


@dataclass(frozen=True)
class MSP(Score):
    """Maximum softmax probability S = −maxₖ softmax(f)ₖ, in [−1, −1/K] (Hendrycks & Gimpel, ICLR 2017).

    Rows bound h = −log maxₖ softmax(f)ₖ = minₖ LSE_j(f_j − f_k) ≥ 0, and S = −exp(−h).
    """

    name = "msp"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        return -logits.softmax(dim=-1).amax(dim=-1)

    def class_scores(self, logits: Tensor) -> Tensor:
        """−softmax(f)ₖ."""
        return -logits.softmax(dim=-1)

    def to_row_scale(self, value: float) -> float:
        """h = −log(−S)."""
        return -math.log(-value) if value < 0 else math.inf

    def from_row_scale(self, values: Tensor) -> Tensor:
        """S = −exp(−h)."""
        return -(-values).exp()

    def rows(self, logits: Logits, side: Side) -> ScoreRows:
        """From above chords for the class that is most probable at the centre; from below a tangent for every class."""
        if side == "lower":
            return Tangents(1, logits.units, logits.centre).touching()
        maps = logits.units[None] - logits.units[logits.top][:, None]
        rows, constants = chords(logits, maps, logits.top_differences, torch.zeros_like(logits.centre))
        return ScoreRows(rows[:, None], constants[:, None])

    def lower(self, logits: Logits) -> Tensor:
        """Lower bounds (N,): no class may become more probable."""
        return -logits.kept(log_probability_bounds).upper.amax(1).exp()

    def upper(self, logits: Logits) -> Tensor:
        """Upper bounds (N,): one class stays as probable."""
        # max z ≥ z_k: no logit exceeds the maximum.
        direct = torch.logsumexp(logits.top_differences.upper.clamp_max(0), 1)
        return self.from_row_scale(torch.minimum(direct, rows_upper(logits, self.rows(logits, "upper"))))

    def bounds(self, logits: Logits) -> Interval:
        """Lower and upper bounds (N,); the upper ones by every class."""
        pairs = logits.pairs
        direct = torch.logsumexp(pairs.upper.clamp_max(0), 2).amin(1)
        return Interval(self.lower(logits), torch.minimum(self.upper(logits), self.from_row_scale(direct)))

    def gradient_box(self, logits: Logits) -> GradientBox:
        """The hull over every class that may be the most probable of −∂p_k/∂z."""
        low, high = probability_bounds(logits)
        possible = (high >= low.amax(1, keepdim=True))[..., None]
        least, most = probability_jacobian(low, high)
        lower, upper = torch.where(possible, -most, math.inf), torch.where(possible, -least, -math.inf)
        return GradientBox(lower.amin(1), upper.amax(1), 0.0)

    def lipschitz(self, outputs: int) -> float:
        """The constant one half: ‖∂p_k/∂z‖₁ = 2p_k(1 − p_k)."""
        return 0.5

    def box_bounds(self, lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
        """Exact on a box: below one logit at its upper end, above none but the largest lower end exceeds it."""
        pairs = pair_bounds(lower, upper, differences)
        least = torch.logsumexp(pairs.lower, 2).amin(1)
        most = torch.logsumexp(pairs.upper.clamp_max(0), 2).amin(1)
        return Interval(self.from_row_scale(least), self.from_row_scale(most))
