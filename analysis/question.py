"""What a certificate is about: the decisions of a score of a network at a threshold."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certood.analysis.bounds import (
    Analysis,
    Graph,
    LpBall,
    score_lower,
    score_upper,
)
from certood.analysis.bounds.score_bounds import RowBounds, scaled_logits
from certood.errors import CannotCertify
from certood.scores import Energy, Score, score_logits


@dataclass(frozen=True, eq=False)
class Question:
    """Whether the decisions of a score at a threshold γ are kept: what a radius is certified for.

    Bounds are of the `graph`. Scores, and what attacks and samples count, are of the `module` that was captured, the user's own
    network in eval mode and float64, so that an error of the graph contradicts its bounds instead of repeating itself.
    """

    graph: Graph
    score: Score
    threshold: float
    norm: float = math.inf
    absent_class: bool = False

    @property
    def module(self) -> nn.Module:
        """The network of which the graph is a copy. Raises CannotCertify where there is none."""
        if self.graph.module is None:
            raise CannotCertify(
                "expected the graph of a captured module, got one without a module to compare it with; use capture()"
            )
        return self.graph.module

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W), computed by the module; differentiable.

        Where the module has no gradients of its own they are those of the graph; the values never are.
        """
        # A module may write into its input.
        found: Tensor = self.module(images.clone())
        if images.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
            followed = self.graph(images)
            found = found.detach().to(followed) + (followed - followed.detach())
        return found

    def scores(self, images: Tensor) -> Tensor:
        """Scores (N,) in float64 of images (N, C, H, W), by the module; differentiable."""
        return score_logits(self.score, self.logits(images).double(), absent_class=self.absent_class)

    def graph_scores(self, images: Tensor) -> Tensor:
        """What the graph says the scores (N,) are; they differ from `scores` only by rounding, unless the graph is wrong."""
        return score_logits(self.score, self.graph(images), absent_class=self.absent_class)

    def margin_bounds(self, analysis: RowBounds, accepted: bool) -> Tensor:
        """Lower bounds (N,) over the ball of γ − S where images are accepted, of S − γ where they are rejected."""
        if accepted:
            return self.threshold - score_upper(analysis, self.score, absent_class=self.absent_class)
        return score_lower(analysis, self.score, absent_class=self.absent_class) - self.threshold

    def linear_radius(self, analysis: Analysis, ball: LpBall) -> Tensor:
        """For accepted images the largest r ≤ ε at which one linear bound, valid on the whole ball, still certifies.

        γ − S ≥ γ + T(p·z/T + H(p)) ≥ A·x + b; over the ball of radius r its least value is known in closed form.
        """
        count = len(ball)
        if not isinstance(self.score, Energy) or analysis.kind == "interval":
            return torch.zeros(count).double()
        logits = scaled_logits(analysis, self.score, absent_class=self.absent_class)
        weights = logits.centre.softmax(1)
        rows = self.score.temperature * logits.padded(weights)
        bound = analysis.linear_lower(len(self.graph.nodes) - 1, rows[:, None])
        shift = bound.constant[:, 0] + self.threshold + self.score.temperature * torch.special.entr(weights).sum(1)
        low, high = torch.zeros_like(ball.eps), ball.eps.clone()
        for _ in range(30):
            middle = (low + high) / 2
            kept = LpBall(ball.centre, middle, ball.norm).least(bound.rows)[:, 0] + shift > 1e-12
            low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
        return low
