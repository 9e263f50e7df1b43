"""Certified radii: how far an image may be moved before its decision could change, by direct bounds of the score.

An accepted image stays accepted on B_p(x, r) where the upper bound of S is at most γ, a rejected one stays rejected where the
lower bound exceeds γ. The largest such r is searched by regula falsi on the bound's slack, which few passes pin down.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.bounds import Analysis, Graph, LpBall, analyse, score_lower, score_upper
from certood.analysis.bounds.auto_lirpa import AutoLirpa
from certood.analysis.bounds.score_bounds import RowBounds, scaled_logits
from certood.scores import Energy, Score, score_logits

Slack = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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
        padded = torch.nn.functional.pad(weights, (0, self.graph.outputs - weights.shape[1]))
        bound = analysis.linear_lower(len(self.graph.nodes) - 1, padded[:, None])
        shift = bound.constant[:, 0] + self.threshold + self.score.temperature * torch.special.entr(weights).sum(1)
        low, high = torch.zeros_like(ball.eps), ball.eps.clone()
        for _ in range(30):
            middle = (low + high) / 2
            kept = LpBall(ball.centre, middle, ball.norm).least(bound.rows)[:, 0] + shift > 1e-12
            low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
        return low


def largest_radius(norm: float, pixels: int) -> float:
    """The radius from which on a ball is the whole pixel range: 1, √d or d."""
    return {math.inf: 1.0, 2.0: math.sqrt(pixels), 1.0: float(pixels)}[float(norm)]


def certified_radii(
    question: Question,
    images: Tensor,
    accepted: Tensor,
    *,
    method: str = "alpha-crown",
    tolerance: float = 0.01,
    guess: Tensor | None = None,
    iterations: int = 20,
    max_passes: int = 16,
    max_memory: float | None = None,
    engine: str = "certood",
) -> Tensor:
    """Certified radii (N,) in pixels of images (N, C, H, W) for their own decisions, `accepted` (N,).

    Each is within `tolerance`, relatively, of the largest that the method certifies, unless `max_passes` ends the search. `guess`
    is where the search starts, e.g. the gradient radius. α-CROWN starts from what CROWN certifies. `engine` may be
    auto-lirpa, which has no closed form of the radius.
    """
    if method == "alpha-crown":
        crown = certified_radii(
            question,
            images,
            accepted,
            method="crown",
            tolerance=0.05,
            guess=guess,
            max_memory=max_memory,
            engine=engine,
        )
        guess = (1.1 * crown).clamp_min(1e-6)
    found = torch.zeros(len(images), dtype=torch.float64)
    for decision in (True, False):
        members = (accepted == decision).nonzero().flatten()
        if not len(members):
            continue

        def slack(
            chosen: Tensor, eps: Tensor, members: Tensor = members, decision: bool = decision
        ) -> tuple[Tensor, Tensor]:
            ball = LpBall(images[members[chosen]], eps, question.norm)
            if engine == "auto-lirpa":
                other = AutoLirpa(question.graph, ball, method, iterations=iterations)
                return question.margin_bounds(other, decision), torch.zeros_like(eps)
            analysis = analyse(question.graph, ball, method, iterations=iterations, max_memory=max_memory)
            margins = question.margin_bounds(analysis, decision)
            closed = question.linear_radius(analysis, ball) if decision else torch.zeros_like(eps)
            return margins, closed

        with torch.no_grad():
            start = (question.scores(images[members]) - question.threshold).abs()
        begin = torch.full_like(start, 0.01) if guess is None else guess[members].to(torch.float64)
        limit = largest_radius(question.norm, images[0].numel())
        found[members] = _largest(slack, start, begin, limit, tolerance, max_passes)
    return found


def _largest(slack: Slack, start: Tensor, guess: Tensor, limit: float, tolerance: float, max_passes: int) -> Tensor:
    """The largest ε (N,) with positive slack, by regula falsi (Illinois); images whose search has ended leave the batch."""
    low, low_value = torch.zeros_like(start), start.clone()
    high, high_value = torch.full_like(start, limit), torch.full_like(start, -math.inf)
    known = torch.zeros_like(start, dtype=torch.bool)
    eps = guess.clamp(1e-9, limit)
    active = (start > 0).nonzero().flatten()
    side = torch.zeros_like(start)
    for _ in range(max_passes):
        if not len(active):
            break
        value, closed = slack(active, eps[active])
        good = value > 0
        kept, lost = active[good], active[~good]
        low[kept], low_value[kept] = eps[kept], value[good]
        high[lost], high_value[lost], known[lost] = eps[lost], value[~good], True
        # The side that stays gets half its value, so that the other side moves too.
        high_value[kept] = torch.where(side[kept] > 0, high_value[kept] / 2, high_value[kept])
        low_value[lost] = torch.where(side[lost] < 0, low_value[lost] / 2, low_value[lost])
        side[kept], side[lost] = 1, -1
        better = closed[~good] > low[lost]
        low[lost[better]] = closed[~good][better]
        share = low_value / (low_value - high_value).clamp_min(1e-300)
        secant = low + torch.where(share.isfinite(), share, 0.5).clamp(0.02, 0.98) * (high - low)
        middle = torch.where(low > 0, (low * high).sqrt(), high / 4)
        within = torch.where(high_value.isinf() | (low == 0) & (high_value < -20 * start), middle, secant)
        within = torch.maximum(torch.minimum(within, high / (1 + tolerance / 2)), low * (1 + tolerance / 2))
        eps = torch.where(known, within, (2 * low).clamp_max(limit))
        done = torch.where(known, high <= low * (1 + tolerance), low >= limit) | (known & (high < 1e-8))
        active = active[~done[active]]
    return low
