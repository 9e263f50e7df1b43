"""Certified radii made larger by branch and bound, between what linear bounds certify and what an attack has refuted."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from certood.analysis.bounds import LpBall, analyse, logits_of
from certood.analysis.bounds.linear.branching import Branching, branched_least, kinks
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.direct import largest_radius
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question
from certood.errors import CertoodError
from certood.scores import Tangents

# Bounds so little above 0 are not told from rounding.
LEAST_MARGIN = 1e-9


class Refined(Evidence):
    """Radii between what direct bounds certify and what an attack has refuted, certified by branch and bound."""

    quantities = (
        Quantity("radius_refined", of="radius", side="lower", kind="certified", label="radius by branch and bound"),
    )

    @property
    def wanted(self) -> bool:
        """Only where the settings allow parts: it is slow."""
        return super().wanted and self.settings.parts > 0

    def check(self, question: Question) -> None:
        """Raise CertoodError for a network without piecewise linear activations, at whose kinks balls are split."""
        if not kinks(question.graph):
            raise CertoodError(
                "parts say nothing of this network: no activation of it is piecewise linear, so that no ball is split; "
                "leave it out"
            )

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The radii (N,)."""
        radii, right = known["radius_direct"].clone(), known.right
        if len(right):
            radii[right] = refined_radii(
                question,
                images[right],
                known.accepted[right],
                radii[right],
                known["radius_attack"][right],
                parts=self.settings.parts,
                tolerance=self.settings.tolerance,
            )
        known.methods.append("branch and bound")
        return {"radius_refined": radii}


def refined_radii(
    question: Question,
    images: Tensor,
    accepted: Tensor,
    certified: Tensor,
    attacked: Tensor,
    *,
    parts: int,
    tolerance: float = 0.01,
    max_probes: int = 6,
) -> Tensor:
    """Certified radii (N,) in pixels, none below `certified` (N,), by bisection up to the attack radii `attacked` (N,).

    Each probe splits the ball of an image into at most `parts` parts, for every row that has to hold for the score.
    """
    low = certified.to(torch.float64).clone()
    high = attacked.to(torch.float64).clamp_max(largest_radius(question.norm, images[0].numel()))
    for _ in range(max_probes):
        waiting = ((low > 0) & (high > low * (1 + tolerance))).nonzero().flatten()
        if not len(waiting):
            break
        eps = (low[waiting] * high[waiting]).sqrt()
        margins = torch.empty_like(eps)
        for decision in (True, False):
            members = (accepted[waiting] == decision).nonzero().flatten()
            if len(members):
                ball = LpBall(images[waiting[members]], eps[members], question.norm)
                margins[members] = _margins(question, ball, decision, Branching(parts))
        kept = margins > LEAST_MARGIN
        low[waiting[kept]], high[waiting[~kept]] = eps[kept], eps[~kept]
    return low


def _margins(question: Question, ball: LpBall, accepted: bool, effort: Branching) -> Tensor:
    """Lower bounds (N,) of γ − S, or of S − γ, on the scale of the score's rows, sought until their signs are known."""
    analysis = analyse(question.graph, ball, "crown")
    logits = logits_of(analysis)
    sign = -1 if accepted else 1
    found = question.score.rows(logits, "upper" if accepted else "lower")
    rows, constants = sign * found.rows, sign * (found.constants - question.score.to_row_scale(question.threshold))
    plain = logits.lower_rows(rows.flatten(1, 2)).view_as(constants) + constants
    best = torch.nan_to_num(plain, nan=-torch.inf).max(2)
    margins = torch.full_like(ball.eps, torch.inf)
    place = torch.arange(len(ball), device=rows.device)
    for group in range(rows.shape[1]):
        # Parts are needed where this group does not hold without them, and none before has failed.
        open_ones = (best.values[:, group] <= LEAST_MARGIN) & (margins > LEAST_MARGIN)
        value = best.values[:, group]
        if open_ones.any():
            shift = torch.where(open_ones, 0.0, torch.inf)
            if found.tangents is None:
                chosen = best.indices[:, group]
                row, constant = rows[place, group, chosen], constants[place, group, chosen]
                start = torch.cat([row, constant[:, None]], 1)
                branched = branched_least(analysis, _given, start, shift, effort)
            else:
                objective = partial(_tangent, found.tangents, group, sign)
                level = question.score.to_row_scale(question.threshold)
                branched = branched_least(analysis, objective, found.tangents.start, shift - sign * level, effort)
            value = torch.where(open_ones, branched, value)
        margins = torch.minimum(margins, value)
    return margins


def _given(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The row and constant that are the parameters, which stay as they are."""
    return parameters[:, :-1].detach(), parameters[:, -1].detach()


def _tangent(tangents: Tangents, group: int, sign: int, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """A member of a family of tangents, which every part of the ball chooses for itself."""
    rows, constants = tangents.member(group, parameters)
    return sign * rows, sign * constants
