"""The divergence of the softmax from the uniform distribution."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.scores.base import Score
from certood.scores.log_probabilities import pair_bounds, probability_bounds
from certood.scores.logsumexp import chords
from certood.scores.protocol import GradientBox, Interval, Logits, ScoreRows, Side, Tangents, rows_lower, rows_upper


@dataclass(frozen=True)
class KLUniform(Score):
    """S = −KL(uniform ‖ softmax(f)) = log K + mean(f) − logsumexp(f), at most 0, which flat logits reach.

    Outlier exposure (Hendrycks et al., ICLR 2019) trains outliers with the loss log K − S.
    """

    name = "kl-uniform"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        return self._offset(logits.shape[-1]) + logits.log_softmax(dim=-1).mean(dim=-1)

    def class_scores(self, logits: Tensor) -> Tensor:
        """log K + mean(f) − f_k, because logsumexp(f) ≥ f_k."""
        return self._offset(logits.shape[-1]) + logits.mean(dim=-1, keepdim=True) - logits

    def rows(self, logits: Logits, side: Side) -> ScoreRows:
        """From above a tangent of logsumexp, from below its chords about the mean and about the largest logit."""
        if side == "upper":
            shift = self._offset(logits.columns)
            return Tangents(-1, _mean(logits)[None], logits.centre, shift=shift).touching()
        mean, top = _mean(logits), logits.units[logits.top]
        count = len(top)
        maps = (logits.units - mean).expand(count, -1, -1)
        own = chords(logits, maps, logits.kept(_centred), torch.zeros_like(top))
        other = chords(logits, logits.units[None] - top[:, None], logits.top_differences, top - mean)
        rows, constants = (torch.cat(parts, 1)[:, None] for parts in zip(own, other, strict=True))
        return ScoreRows(-rows, self._offset(logits.columns) - constants)

    def bounds(self, logits: Logits) -> Interval:
        """Lower and upper bounds (N,), also from the box of the logits less their mean."""
        box = logits.kept(_centred)
        lower, upper = (self._offset(logits.columns) - torch.logsumexp(part, 1) for part in (box.upper, box.lower))
        linear = rows_lower(logits, self.rows(logits, "lower")), rows_upper(logits, self.rows(logits, "upper"))
        return Interval(torch.maximum(lower, linear[0]), self._at_most(torch.minimum(upper, linear[1]), logits.columns))

    def gradient_box(self, logits: Logits) -> GradientBox:
        """∂S/∂z = 1/K − softmax(z)."""
        low, high = probability_bounds(logits)
        return GradientBox(1 / logits.columns - high, 1 / logits.columns - low, 0.0)

    def lipschitz(self, outputs: int) -> float:
        """2(1 − 1/K): the largest l1 distance of a distribution from the uniform one."""
        return 2 * (1 - 1 / outputs)

    def box_bounds(self, lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
        """The best of the box itself and, because S reads differences alone, of those of z_j − z_k for every k."""
        boxes = Interval(lower[:, None], upper[:, None])
        if differences is not None:
            pairs = pair_bounds(lower, upper, differences)
            boxes = Interval(*(torch.cat(parts, 1) for parts in zip(boxes, pairs, strict=True)))
        columns = lower.shape[1]
        shift = self._offset(columns) - math.log(columns)
        return Interval(box_lower(*boxes).amax(1) + shift, self._at_most(box_upper(*boxes).amin(1) + shift, columns))

    def _offset(self, columns: int) -> float:
        """S − mean log softmax(f)."""
        return math.log(columns)

    def _at_most(self, values: Tensor, columns: int) -> Tensor:
        """Upper bounds, none above what flat logits give."""
        return values.clamp_max(self._offset(columns) - math.log(columns))


@dataclass(frozen=True)
class UniformLogLikelihood(KLUniform):
    """S = (1/K) Σₖ log softmax(f)ₖ, at most −log K: minus the cross-entropy to the uniform distribution."""

    name = "uniform-log-likelihood"

    def _offset(self, columns: int) -> float:
        return 0.0


def box_upper(lower: Tensor, upper: Tensor) -> Tensor:
    """The largest KLUniform (…) on a box (…, K).

    There zⱼ = t within [lⱼ, uⱼ], else at the nearer end, with K·exp(t) = Σ exp zⱼ; t by bisection. The bound is a tangent at that
    point, log K + mean(z) − w·z − H(w) ≥ S for every w of the simplex, at its largest on the box, so that no error of t matters.
    """
    low, high = lower.detach().amin(-1, keepdim=True), upper.detach().amax(-1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        mean = torch.logsumexp(middle.clamp(lower, upper), -1, keepdim=True) - math.log(lower.shape[-1])
        low, high = torch.where(mean > middle, middle, low), torch.where(mean > middle, high, middle)
    # The bound is least at these weights, so that the gradient with respect to the box is that for fixed ones.
    log_weights = high.clamp(lower, upper).log_softmax(-1).detach()
    rest = 1 / lower.shape[-1] - log_weights.exp()
    largest = (rest.clamp_min(0) * upper + rest.clamp_max(0) * lower).sum(-1)
    return math.log(lower.shape[-1]) + largest + (log_weights.exp() * log_weights).sum(-1)


def box_lower(lower: Tensor, upper: Tensor) -> Tensor:
    """A lower bound (…) of KLUniform on a box (…, K).

    logsumexp(z) ≤ Σ exp(zⱼ + μ) − μ − 1 for every μ, so that −S is at most Σ max(exp(zⱼ + μ) − zⱼ/K) − μ − 1 − log K, each
    maximum at an end of its interval. That is convex in μ. Its minimum, by bisection, is mostly at a kink, where one end gives
    way to the other; its gradient with respect to the box is a mixture of those on both sides.
    """
    share = 1 / lower.shape[-1]

    def slope(level: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the upper end is taken, (…, K), and the derivative (…, 1)."""
        low, high = (lower + level).exp(), (upper + level).exp()
        taken = high - share * upper >= low - share * lower
        return taken, torch.where(taken, high, low).sum(-1, keepdim=True) - 1

    left, right = (-torch.logsumexp(part.detach(), -1, keepdim=True) for part in (upper, lower))
    for _ in range(60):
        middle = (left + right) / 2
        rising = slope(middle)[1] > 0
        left, right = torch.where(rising, left, middle), torch.where(rising, middle, right)
    (before, falling), (after, rising) = slope(left), slope(right)
    weight = torch.where(rising > falling, rising / (rising - falling), 1.0).clamp(0, 1).detach()
    values = [(end + right).exp() - share * end for end in (lower, upper)]
    sides = (torch.where(taken, values[1], values[0]).sum(-1) for taken in (before, after))
    mixed = sum(part * side for part, side in zip((weight[..., 0], 1 - weight[..., 0]), sides, strict=True))
    # The value is that of the larger ends, which alone is a bound; the gradient is that of the mixture.
    largest = mixed + (torch.maximum(*values).sum(-1) - mixed).detach()
    return math.log(lower.shape[-1]) - (largest - right[..., 0] - 1)


def _mean(logits: Logits) -> Tensor:
    return torch.full_like(logits.centre[0], 1 / logits.columns)


def _centred(logits: Logits) -> Interval:
    """Bounds (N, K) of z_j − mean(z)."""
    return logits.rows((logits.units - _mean(logits)).expand(len(logits.centre), -1, -1))
