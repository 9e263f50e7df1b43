"""The energy score, with any temperature."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.errors import CertoodError
from certood.scores.base import Score
from certood.scores.conditions import LogitCondition, logsumexp_condition
from certood.scores.log_probabilities import pair_bounds, probability_bounds
from certood.scores.logsumexp import chord_rows, logsumexp_bounds, logsumexp_upper
from certood.scores.protocol import GradientBox, Interval, Logits, ScoreRows, Side, Tangents


@dataclass(frozen=True)
class Energy(Score):
    """Energy S = −T·logsumexp(f/T) (Liu et al., NeurIPS 2020, eq. 4, with the sign that makes outliers high).

    Units: those of the logits. Raises CertoodError unless the temperature is positive.
    """

    temperature: float = 1.0
    name = "energy"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise CertoodError(f"expected an energy temperature > 0, got {self.temperature}")

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        return -self.temperature * torch.logsumexp(logits / self.temperature, dim=-1)

    def class_scores(self, logits: Tensor) -> Tensor:
        """−f_k, because T·logsumexp(f/T) ≥ f_k."""
        return -logits

    def rows(self, logits: Logits, side: Side) -> ScoreRows:
        """Rows that bound the score: from above by tangents of logsumexp, from below by its chords."""
        if side == "upper":
            offsets = torch.zeros_like(logits.centre[:1])
            start = logits.centre / self.temperature
            return Tangents(-1, offsets, start, self.temperature).touching()
        rows, constants = self._scaled(logits).kept(chord_rows)
        return ScoreRows(-rows[:, None], -self.temperature * constants[:, None])

    def lower(self, logits: Logits) -> Tensor:
        """Lower bounds (N,): by chords, and by the box and the differences from the largest logit."""
        return -self.temperature * logsumexp_upper(self._scaled(logits))

    def bounds(self, logits: Logits) -> Interval:
        """Lower and upper bounds (N,); the upper ones also by the box, and by tangents at its ends."""
        lower, upper = logsumexp_bounds(self._scaled(logits))
        return Interval(-self.temperature * upper, -self.temperature * lower)

    def gradient_box(self, logits: Logits) -> GradientBox:
        """∂S/∂z = −softmax(z/T)."""
        low, high = probability_bounds(self._scaled(logits))
        return GradientBox(-high, -low, -1.0)

    def lipschitz(self, outputs: int) -> float:
        """The constant one: the weights of a softmax sum to it."""
        return 1.0

    def condition(self, logits: Sequence[float], threshold: float, *, accepted: bool) -> LogitCondition:
        """p·f + T·H(p) ≥ −γ, or max f < −γ − T·log K."""
        return logsumexp_condition(logits, threshold, self.temperature, accepted=accepted)

    def box_bounds(self, lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
        """Exact on a box; LSE = z_k + LSE_j(z_j − z_k) for every k where differences are known."""
        factor = 1 / self.temperature
        low, high = torch.logsumexp(lower * factor, 1), torch.logsumexp(upper * factor, 1)
        if differences is not None:
            least, most = (torch.logsumexp(part * factor, 2) for part in pair_bounds(lower, upper, differences))
            low = torch.maximum(low, (lower * factor + least).amax(1))
            high = torch.minimum(high, (upper * factor + most).amin(1))
        return Interval(-self.temperature * high, -self.temperature * low)

    def _scaled(self, logits: Logits) -> Logits:
        return logits.view(factor=1 / self.temperature)
