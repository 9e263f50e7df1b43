"""The bounds that a certified term reads, of the images of a step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certood.analysis.bounds.differentiable import DifferentiableBounds
from certood.scores import Score
from certood.train.certified.base import CertifiedTerm, ScoreBounds, Side


@dataclass(frozen=True)
class CertifiedTraining:
    """A certified term with the bounds that it reads.

    `side` says whose images are bounded, outliers' or ID images' as well; `quantile` is the share of the outliers whose bounds
    are used.
    """

    term: CertifiedTerm
    bounds: DifferentiableBounds
    side: Side = "outliers"
    norm: float = math.inf
    quantile: float = 1.0

    @property
    def reads_clean_outliers(self) -> bool:
        """Whether the values of outliers themselves are read, and not their bounds alone."""
        return self.term.reads_clean_outliers or self.quantile < 1

    def known(
        self, score: Score, images: Tensor, count_in: int, scores_in: Tensor, scores_out: Tensor | None, eps: float
    ) -> tuple[ScoreBounds, ScoreBounds]:
        """What is known of the scores of ID images, the first `count_in` of `images` (N, C, H, W), and of the outliers after
        them, over balls of radius ε in pixels; `scores_out` may be left out where they are not read."""
        images = images.detach()
        first = 0 if self.side == "both" else count_in
        found = self.bounds(images[first:], eps, self.norm)
        lower, upper = score.box_bounds(found.lower, found.upper)
        attacked = self._attacked(score, images[first:], count_in - first, eps)
        lower_out = lower[count_in - first :]
        clean_out = lower_out if scores_out is None else scores_out
        outside = ScoreBounds(
            clean_out,
            lower_out,
            upper[count_in - first :],
            clean_out if attacked is None else attacked[count_in - first :],
        ).of_share(self.quantile)
        if self.side == "outliers":
            return ScoreBounds.of_points(scores_in), outside
        inside = ScoreBounds(
            scores_in, lower[:count_in], upper[:count_in], scores_in if attacked is None else attacked[:count_in]
        )
        return inside, outside

    def _attacked(self, score: Score, images: Tensor, count_in: int, eps: float) -> Tensor | None:
        if not self.term.attack_steps:
            return None
        signs = torch.ones(len(images), device=images.device)
        signs[count_in:] = -1
        model = self.bounds.model
        return score(model(attack(model, score, images, signs, eps, self.term.attack_steps)).float())


def attack(model: nn.Module, score: Score, images: Tensor, signs: Tensor, eps: float, steps: int) -> Tensor:
    """Images of the l_inf balls of radius ε, clipped to [0, 1], that raise sign·S, by projected gradient steps from random starts
    (Madry et al., ICLR 2018); steps of 2.5 ε over their number."""
    lower, upper = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    moved = torch.lerp(lower, upper, torch.rand_like(images))
    with torch.enable_grad():
        for _ in range(steps):
            moved.requires_grad_()
            value = (signs * score(model(moved).float())).sum()
            (slope,) = torch.autograd.grad(value, moved)
            moved = torch.clamp(moved.detach() + 2.5 * eps / steps * slope.sign(), lower, upper)
    return moved
