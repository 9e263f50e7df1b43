"""Certified bounds over the balls of every ε: of the score, and of its local Lipschitz constant."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from certood.analysis.bounds import Analysis, Bounds, LpBall, OuterBoxes, analyse, engine_by_name, score_bounds
from certood.analysis.bounds.operations.precision import outward_sum
from certood.analysis.bounds.score_bounds import RowBounds
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
        eps, outer = self.settings.eps, None
        order = sorted(range(len(eps)), key=lambda place: eps[place])
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for place in reversed(order):
            found[place], outer = self._found(question, LpBall(images, eps[place], question.norm), known, outer)
        lower, upper, local = (
            torch.stack(part) for part in zip(*(found[place] for place in sorted(found)), strict=True)
        )
        if not question.score.exact:
            return {"lower": lower, "upper": upper}
        constants = torch.minimum(local, known["lipschitz_global"])
        constants[order] = nested(constants[order])
        reach = constants * torch.tensor(eps, dtype=torch.float64, device=constants.device)[:, None]
        # The score itself, with what rounding may move it by.
        point = known.point_of(question, images)
        return {
            "lower": torch.fmax(lower, outward_sum(point.lower, -reach)),
            "upper": torch.fmin(upper, -outward_sum(-point.upper, -reach)),
            "lipschitz": constants,
        }

    def _found(
        self, question: Question, ball: LpBall, known: Known, outer: OuterBoxes | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], OuterBoxes | None]:
        """Lower and upper bounds of the score (N,), and Lipschitz constants (N,), from one pass over the network.

        `outer` is what the ball before, a larger one, tells of this one; what this one tells of the next comes last.
        """
        settings = self.settings
        analysis = self._analysis(engine_by_name(settings.engine).analyse, question, ball, outer)
        bounds = score_bounds(analysis, question.score)
        if settings.precision != torch.float64:
            bounds = self._decided_again(question, ball, bounds, known)
        if analysis.method not in known.methods:
            known.methods.append(analysis.method)
        local = torch.full_like(bounds.upper, torch.inf)
        if question.score.exact and not isinstance(analysis, Analysis):
            # Gradients are bounded from boxes of every node, which another engine does not give.
            analysis = self._analysis(analyse, question, ball, outer)
        if not isinstance(analysis, Analysis):
            return (bounds.lower, bounds.upper, local), None
        if question.score.exact:
            local = local_lipschitz(question, analysis, ball)
        return (bounds.lower, bounds.upper, local), OuterBoxes.of(analysis.graph, analysis.boxes)

    def _analysis(
        self, by: Callable[..., RowBounds], question: Question, ball: LpBall, outer: OuterBoxes | None
    ) -> RowBounds:
        settings = self.settings
        return by(
            question.graph,
            ball,
            settings.method,
            iterations=settings.iterations,
            dtype=settings.precision,
            outer=outer,
        )

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
