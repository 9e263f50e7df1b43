"""Certified bounds over the balls of every ε: of the score, and of its local Lipschitz constant."""

from collections.abc import Mapping

import torch
from torch import Tensor

from certood.analysis.bounds import Analysis, Bounds, LpBall, analyse, engine_by_name, score_bounds
from certood.analysis.bounds.operations.precision import outward_sum
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.lipschitz import local_lipschitz, nested
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question

# Rows in float32 widen bounds by a few thousandths of their width.
ROUNDING_SHARE = 0.01


class Balls(Evidence):
    """Bounds of S over B_p(x, ε) and certified Lipschitz constants there, none above that of a larger ball or the global one.

    Where a constant L says more than bound propagation, bounds are S(x) ± L·ε. Bounds in float32 that miss γ by so little that
    their rounding may be why are computed again in float64.
    """

    quantities = (
        Quantity("lower", of="score", side="lower", kind="certified", per_eps=True, label="lower bound of the score"),
        Quantity("upper", of="score", side="upper", kind="certified", per_eps=True, label="upper bound of the score"),
        Quantity(
            "lipschitz",
            of="lipschitz",
            side="upper",
            kind="certified",
            per_eps=True,
            first="lipschitz_certified",
            label="certified Lipschitz constant",
            head="L certified",
            lowest=True,
        ),
    )

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The bounds and constants (E, N), in the order of the radii of the settings; no constants of a network that is bounded
        in part."""
        eps = self.settings.eps
        lower, upper, local = (
            torch.stack(part) for part in zip(*(self._bounds(question, images, one, known) for one in eps), strict=True)
        )
        if not question.score.exact:
            return {"lower": lower, "upper": upper}
        constants = torch.minimum(local, known["lipschitz_global"])
        order = sorted(range(len(eps)), key=lambda place: eps[place])
        constants[order] = nested(constants[order])
        reach = constants * torch.tensor(eps, dtype=torch.float64, device=constants.device)[:, None]
        # The score itself, with what rounding may move it by.
        point = score_bounds(analyse(question.graph, LpBall(images, 0.0, question.norm), "interval"), question.score)
        return {
            "lower": torch.fmax(lower, outward_sum(point.lower, -reach)),
            "upper": torch.fmin(upper, -outward_sum(-point.upper, -reach)),
            "lipschitz": constants,
        }

    def _bounds(self, question: Question, images: Tensor, eps: float, known: Known) -> tuple[Tensor, Tensor, Tensor]:
        """Lower and upper bounds of the score (N,), and Lipschitz constants (N,), from one pass over the network."""
        settings = self.settings
        ball = LpBall(images, eps, settings.norm)
        bounding = engine_by_name(settings.engine).analyse(
            question.graph, ball, settings.method, iterations=settings.iterations, dtype=settings.precision
        )
        bounds = score_bounds(bounding, question.score)
        if settings.precision != torch.float64:
            bounds = self._decided_again(question, ball, bounds, known)
        if bounding.method not in known.methods:
            known.methods.append(bounding.method)
        if not question.score.exact:
            return bounds.lower, bounds.upper, torch.full_like(bounds.upper, torch.inf)
        if isinstance(bounding, Analysis):
            analysis = bounding
        else:
            # Gradients are bounded from boxes of every node, which another engine does not give.
            analysis = analyse(
                question.graph, ball, settings.method, iterations=settings.iterations, dtype=settings.precision
            )
        return bounds.lower, bounds.upper, local_lipschitz(question, analysis, ball)

    def _decided_again(self, question: Question, ball: LpBall, bounds: Bounds, known: Known) -> Bounds:
        """The bounds, computed in float64 as well where they miss γ by less than ROUNDING_SHARE of their distance from S."""
        threshold = question.threshold
        missed = torch.where(known.accepted, bounds.upper - threshold, threshold - bounds.lower)
        away = torch.where(known.accepted, bounds.upper - known.scores, known.scores - bounds.lower)
        near = ((missed >= 0) & (missed <= ROUNDING_SHARE * away)).nonzero().flatten()
        if not len(near):
            return bounds
        settings = self.settings
        finer = score_bounds(
            analyse(question.graph, ball.chosen(near), settings.method, iterations=settings.iterations), question.score
        )
        lower = bounds.lower.index_copy(0, near, torch.fmax(bounds.lower[near], finer.lower))
        upper = bounds.upper.index_copy(0, near, torch.fmin(bounds.upper[near], finer.upper))
        return Bounds(lower, upper, bounds.method)
