"""What a certificate is about: the decisions of a score of a network at a threshold."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.bounds import (
    Analysis,
    Graph,
    LpBall,
    score_lower,
    score_upper,
)
from certood.analysis.bounds.score_bounds import RowBounds, scaled_logits
from certood.scores import Energy, Score, score_logits


@dataclass(frozen=True)
class Question:
    """Whether the decisions of a score at a threshold γ are kept: what a radius is certified for."""

    graph: Graph
    score: Score
    threshold: float
    norm: float = math.inf
    absent_class: bool = False

    def scores(self, images: Tensor) -> Tensor:
        """Scores (N,) in float64 of images (N, C, H, W); differentiable."""
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
