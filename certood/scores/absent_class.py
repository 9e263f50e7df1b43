"""The probability of an extra class that outliers belong to."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.errors import CertoodError
from certood.scores.base import Score
from certood.scores.log_probabilities import (
    box_log_probabilities,
    probability_bounds,
    probability_jacobian,
)
from certood.scores.logsumexp import chords
from certood.scores.protocol import GradientBox, Interval, Logits, ScoreRows, Side, Tangents, rows_lower, rows_upper


@dataclass(frozen=True)
class AbsentClass(Score):
    """Probability of the extra last class, S = softmax(f)_K with K+1 outputs (Mohseni et al., AAAI 2020).

    Rows bound h = log softmax(f)_K, and S = exp(h).
    """

    name = "absent-class"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K+1)."""
        return logits.softmax(dim=-1)[..., -1]

    def suits(self, classes: int, outputs: int) -> bool:
        """Only a network with one output more than classes."""
        return outputs == classes + 1

    def on(self, classes: int, outputs: int) -> Score:
        """The score itself, which reads all outputs; raises CertoodError for a network without an absent class."""
        if not self.suits(classes, outputs):
            raise CertoodError(
                f"score {self.name!r} needs a network trained with an absent class, {classes + 1} outputs for {classes} "
                f"classes; this one has {outputs}"
            )
        return self

    def to_row_scale(self, value: float) -> float:
        """h = log S."""
        return math.log(value) if value > 0 else -math.inf

    def from_row_scale(self, values: Tensor) -> Tensor:
        """S = exp(h)."""
        return values.exp()

    def rows(self, logits: Logits, side: Side) -> ScoreRows:
        """From above a tangent, from below chords, in the differences from the last logit."""
        if side == "upper":
            return Tangents(-1, logits.units[-1:], logits.centre).touching()
        last = self._last(logits)
        maps = logits.units[None] - logits.units[last][:, None]
        rows, constants = chords(logits, maps, logits.differences(last), torch.zeros_like(logits.centre))
        return ScoreRows(-rows[:, None], -constants[:, None])

    def lower(self, logits: Logits) -> Tensor:
        """Lower bounds (N,)."""
        direct = -torch.logsumexp(logits.differences(self._last(logits)).upper, 1)
        return self.from_row_scale(torch.maximum(direct, rows_lower(logits, self.rows(logits, "lower"))))

    def upper(self, logits: Logits) -> Tensor:
        """Upper bounds (N,)."""
        direct = -torch.logsumexp(logits.differences(self._last(logits)).lower, 1)
        linear = rows_upper(logits, self.rows(logits, "upper"))
        return self.from_row_scale(torch.minimum(direct, linear).clamp_max(0))

    def gradient_box(self, logits: Logits) -> GradientBox:
        """∂p_K/∂z."""
        lower, upper = (part[:, -1] for part in probability_jacobian(*probability_bounds(logits)))
        return GradientBox(lower, upper, 0.0)

    def lipschitz(self, outputs: int) -> float:
        """The constant one half: ‖∂p_K/∂z‖₁ = 2p_K(1 − p_K)."""
        return 0.5

    def box_bounds(self, lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
        """Exact on a box: the last logit at one end, the others at their other end."""
        low, high = box_log_probabilities(lower, upper, differences)
        return Interval(self.from_row_scale(low[:, -1]), self.from_row_scale(high[:, -1]))

    def _last(self, logits: Logits) -> Tensor:
        return torch.full_like(logits.top, logits.columns - 1)


@dataclass(frozen=True)
class AbsentClassLogProbability(AbsentClass):
    """S = log softmax(f)_K of the extra last class, at most 0: what training by it reads, as it does not saturate."""

    name = "absent-class-log-probability"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K+1)."""
        return logits.log_softmax(dim=-1)[..., -1]

    def to_row_scale(self, value: float) -> float:
        """h = S."""
        return value

    def from_row_scale(self, values: Tensor) -> Tensor:
        """S = h."""
        return values

    def gradient_box(self, logits: Logits) -> GradientBox:
        """∂S/∂z = e_K − softmax(z)."""
        low, high = probability_bounds(logits)
        return GradientBox(logits.units[-1] - high, logits.units[-1] - low, 0.0)

    def lipschitz(self, outputs: int) -> float:
        """Two: ‖e_K − p‖₁ = 2(1 − p_K)."""
        return 2.0
