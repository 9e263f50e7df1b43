"""The entropy of the softmax."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.scores.base import Score
from certood.scores.log_probabilities import box_log_probabilities, log_probability_bounds
from certood.scores.protocol import GradientBox, Interval, Logits, rows_lower, rows_upper


@dataclass(frozen=True)
class Entropy(Score):
    """Entropy of the softmax S = −Σ pₖ log pₖ, in [0, log K]."""

    name = "entropy"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        log_probabilities = logits.log_softmax(dim=-1)
        return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)

    def lower(self, logits: Logits) -> Tensor:
        """Lower bounds (N,): of the probabilities one by one, and by the mean value theorem."""
        return torch.maximum(
            entropy_lower(*logits.kept(log_probability_bounds)), rows_lower(logits, self.rows(logits, "lower"))
        )

    def upper(self, logits: Logits) -> Tensor:
        """Upper bounds (N,): of probabilities that sum to one, and by the mean value theorem."""
        return torch.minimum(
            entropy_upper(*logits.kept(log_probability_bounds)), rows_upper(logits, self.rows(logits, "upper"))
        )

    def gradient_box(self, logits: Logits) -> GradientBox:
        """∂S/∂zₖ = −pₖ(log pₖ + S)."""
        low, high = logits.kept(log_probability_bounds)
        factors = low + entropy_lower(low, high)[:, None], high + entropy_upper(low, high)[:, None]
        corners = torch.stack([p.exp() * factor for p in (low, high) for factor in factors])
        return GradientBox(-corners.amax(0), -corners.amin(0), 0.0)

    def lipschitz(self, outputs: int) -> float:
        """max over a of 2a(1 − a)(log(a/(1 − a)) + log(K − 1)).

        ‖∂S/∂z‖₁ = Σ pₖ|log pₖ + S|. With A the classes of pₖ ≥ exp(−S), a their probability, and S_A, S_B the entropies within A
        and within the others, it is 2a(1 − a)(log(a/(1 − a)) + S_B − S_A), where S_A ≥ 0 and S_B ≤ log(K − 1). The maximum
        lies in (1/2, 1), where log(a/(1 − a)) + log(K − 1) = 1/(2a − 1).
        """
        if outputs < 2:
            return 0.0
        spread = math.log(outputs - 1)
        low, high = 0.5, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if middle in (0.5, 1.0):
                break
            rising = math.log(middle / (1 - middle)) + spread < 1 / (2 * middle - 1)
            low, high = (middle, high) if rising else (low, middle)
        return 2 * low * (1 - low) * (math.log(high / (1 - high)) + spread) * (1 + 1e-12)

    def box_bounds(self, lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
        """Bounds from the probabilities that the box, and the differences, leave possible."""
        low, high = box_log_probabilities(lower, upper, differences)
        return Interval(entropy_lower(low, high), entropy_upper(low, high))


def entropy_lower(low: Tensor, high: Tensor) -> Tensor:
    """Lower bounds (N,) of −Σ p log p from bounds (N, K) of log p: each summand is concave in p, so smallest at an end."""
    return torch.minimum(_summand(low), _summand(high)).sum(1).clamp_min(0)


def entropy_upper(low: Tensor, high: Tensor) -> Tensor:
    """Upper bounds (N,) of −Σ p log p from bounds (N, K) of log p.

    For every λ, Σ max_p (h(p) − λp) + λ bounds the entropy of whatever sums to one (weak duality); λ by bisection, where the
    maximisers p sum to one.
    """
    floor = math.log(torch.finfo(low.dtype).tiny)
    left = low.detach().amin(1, keepdim=True).clamp_min(floor)
    right = torch.zeros_like(left)
    for _ in range(60):
        middle = (left + right) / 2
        over = middle.clamp(low, high).exp().sum(1, keepdim=True) > 1
        left, right = torch.where(over, left, middle), torch.where(over, middle, right)
    level = -1 - right
    best = right.clamp(low, high)
    upper = (_summand(best) - level * best.exp()).sum(1) + level[:, 0]
    return upper.clamp_max(math.log(low.shape[1]))


def _summand(log_probability: Tensor) -> Tensor:
    """−p log p of log p; 0 at minus infinity, with a gradient of 0."""
    kept = log_probability.clamp_min(-1e4)
    return -kept.exp() * kept
