"""What a certificate is about: the decisions of a score of a network at a threshold."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certood.analysis.bounds import Analysis, Graph, LpBall, analyse, score_bounds, score_lower, score_upper
from certood.analysis.bounds.operations.precision import outward_sum
from certood.devices import device_of
from certood.errors import CannotCertify
from certood.scores import Interval, Logits, Score

# Linear bounds so little above 0 are not told from rounding.
LEAST_MARGIN = 1e-12
# Bounds of the score at a single image that are wider than this share of it are worth a second look.
LOOSE = 1e-6


@dataclass(frozen=True, eq=False)
class Scored:
    """A network in eval mode and float64, and a score of its outputs: what a detector decides by."""

    module: nn.Module
    score: Score


@dataclass(frozen=True, eq=False)
class Question:
    """Whether the decisions of a score at a threshold γ are kept: what a radius is certified for.

    `score` is a function of all outputs of the network (`Detector.output_score`). Bounds are of the `graph`. Scores, and what
    attacks and samples count, are of the `module` that was captured, the user's own network in eval mode and float64, so that an
    error of the graph contradicts its bounds instead of repeating itself.

    Where only a part of the network is bounded (`Score.part`), graph and score are of that part, and `scored` is the whole.
    """

    graph: Graph
    score: Score
    threshold: float
    norm: float = math.inf
    scored: Scored | None = None

    @property
    def module(self) -> nn.Module:
        """The network that decides: the one of which the graph is a copy, or has a part of. Raises CannotCertify where there
        is none."""
        if self.scored is not None:
            return self.scored.module
        if self.graph.module is None:
            raise CannotCertify(
                "expected the graph of a captured module, got one without a module to compare it with; use capture()"
            )
        return self.graph.module

    @property
    def device(self) -> torch.device:
        """Where the module is, and everything about it is computed."""
        return device_of(self.module)

    def logits(self, images: Tensor) -> Tensor:
        """Outputs (N, K) for images (N, C, H, W), computed by the module; differentiable.

        Where the module has no gradients of its own they are those of the graph; the values never are.
        """
        # A module may write into its input.
        found: Tensor = self.module(images.clone())
        if self.scored is None and images.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
            followed = self.graph(images)
            found = found.detach().to(followed) + (followed - followed.detach())
        return found

    def scores(self, images: Tensor) -> Tensor:
        """Scores (N,) in float64 of images (N, C, H, W), by the module; differentiable."""
        return self._deciding(self.logits(images).double())

    def graph_scores(self, images: Tensor) -> Interval:
        """Between which values (N,) the graph says the scores are: one value unless it is of a part of the network. Up to
        rounding `scores` lie there, unless the graph is wrong."""
        return self.score.enclosure(self.graph(images))

    def class_scores(self, images: Tensor) -> Tensor | None:
        """Scores (N, K) that single classes give images, none below S, by the module; None where no single class decides."""
        return self._deciding.class_scores(self.logits(images).double())

    @property
    def _deciding(self) -> Score:
        """The score as a function of the outputs of `module`."""
        return self.score if self.scored is None else self.scored.score

    def point_margins(self, images: Tensor, accepted: bool) -> Tensor:
        """What can be certified (N,) of γ − S at images that are accepted, of S − γ at those that are rejected, in balls of
        radius 0: |γ − S|, or less where only a part of the network is bounded."""
        with torch.no_grad():
            if self.score.exact:
                return (self.scores(images) - self.threshold).abs()
            lower, upper = self.graph_scores(images.double())
            return self.threshold - upper if accepted else lower - self.threshold

    def point_bounds(self, images: Tensor) -> Interval:
        """Between which values (N,) the scores at the images lie in exact arithmetic, whatever the rounding of a forward pass."""
        ball = LpBall(images, 0.0, self.norm)
        with torch.no_grad():
            found = score_bounds(analyse(self.graph, ball, "interval"), self.score)
            lower, upper = found.lower, found.upper
            # What intervals add for rounding grows with every layer; in linear functions of the image it hardly does.
            loose = (~(upper - lower <= LOOSE * (1 + lower.abs()))).nonzero().flatten()
            if len(loose):
                finer = score_bounds(analyse(self.graph, ball.chosen(loose), "crown"), self.score)
                lower = lower.index_copy(0, loose, torch.fmax(lower[loose], finer.lower))
                upper = upper.index_copy(0, loose, torch.fmin(upper[loose], finer.upper))
        return Interval(lower, upper)

    def certain_margins(self, point: Interval, accepted: Tensor) -> Tensor:
        """The least (N,) that |γ − S| can be where S lies in `point_bounds`, for decisions `accepted` (N,); 0 where it stays open
        on which side of γ that is."""
        gamma = torch.full_like(point.upper, self.threshold)
        found = torch.where(accepted, outward_sum(gamma, -point.upper), outward_sum(point.lower, -gamma))
        return found.nan_to_num(0.0).clamp_min(0)

    def margin_bounds(self, logits: Logits, accepted: bool) -> Tensor:
        """Lower bounds (N,) over the ball of γ − S where images are accepted, of S − γ where they are rejected."""
        if accepted:
            return self.threshold - score_upper(logits, self.score)
        return score_lower(logits, self.score) - self.threshold

    def linear_radius(self, analysis: Analysis, logits: Logits, accepted: bool) -> Tensor:
        """The largest r ≤ ε (N,) at which linear bounds, valid on the whole ball of the analysis, still certify.

        The rows of the score are bounded by A·x + b, whose least value over the ball of radius r is known in closed form.
        Zero for intervals, which have no linear bounds.
        """
        ball = analysis.ball
        if not isinstance(ball, LpBall) or analysis.kind == "interval":
            return torch.zeros_like(logits.centre[:, 0])
        sign = -1 if accepted else 1
        found = self.score.rows(logits, "upper" if accepted else "lower")
        shape = found.constants.shape
        bound = analysis.linear_lower(len(self.graph.nodes) - 1, sign * found.rows.flatten(1, 2))
        level = self.score.to_row_scale(self.threshold)
        shift = bound.constant + sign * (found.constants.flatten(1) - level)
        # Of the alternatives of every group the one that is best on the whole ball.
        margins = (ball.least(bound.rows) + shift).view(shape)
        chosen = torch.nan_to_num(margins, nan=-torch.inf).argmax(2) + shape[2] * torch.arange(
            shape[1], device=shift.device
        )
        image = torch.arange(len(shift), device=shift.device)[:, None]
        rows, shift = bound.rows[image, chosen], shift[image, chosen] - LEAST_MARGIN * (1 + abs(level))
        low, high = torch.zeros_like(ball.eps), ball.eps.clone()
        for _ in range(30):
            middle = (low + high) / 2
            kept = (LpBall(ball.centre, middle, ball.norm).least(rows) + shift > 0).all(1)
            low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
        return low
