"""Certified radii made larger by branch and bound, between what linear bounds certify and what an attack has refuted."""

from collections.abc import Mapping

import torch
from torch import Tensor

from certood.analysis.bounds import LpBall, analyse
from certood.analysis.bounds.linear.branching import Branching, branched_least
from certood.analysis.bounds.score_bounds import chord_rows, scaled_logits
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.direct import largest_radius
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question
from certood.scores import Energy

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

    Each probe splits the ball of an image into at most `parts` parts. For the energy only: other scores keep their radii.
    """
    low = certified.to(torch.float64).clone()
    if not isinstance(question.score, Energy):
        return low
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
    """Lower bounds (N,) of γ − S, or of S − γ, over the balls; only their signs are certain to be worked for."""
    analysis = analyse(question.graph, ball, "crown")
    logits = scaled_logits(analysis, question.score, absent_class=question.absent_class)
    assert isinstance(question.score, Energy)
    temperature = question.score.temperature
    threshold = torch.full((len(ball),), question.threshold, dtype=torch.float64)

    if accepted:
        # γ − S = γ + T·LSE(z/T) ≥ γ + p·z + T·H(p) for every p in the simplex, which every part chooses for itself.
        def tangent(parameters: Tensor) -> tuple[Tensor, Tensor]:
            weights = parameters.softmax(1)
            return temperature * logits.padded(weights), temperature * torch.special.entr(weights).sum(1)

        return branched_least(analysis, tangent, logits.centre.log_softmax(1), threshold, effort)

    # S − γ = −T·LSE(z/T) − γ ≥ −a·z − T·b − γ for the chords a·z/T + b of the whole ball.
    def chord(parameters: Tensor) -> tuple[Tensor, Tensor]:
        row, constant = parameters[:, :-1].detach(), parameters[:, -1].detach()
        return -temperature * logits.padded(row), -temperature * constant

    rows, constants = chord_rows(logits)
    best = (logits.lower_rows(-rows) - constants).argmax(1)
    place = torch.arange(len(ball))
    row, constant = rows[place, best], constants[place, best]
    return branched_least(analysis, chord, torch.cat([row, constant[:, None]], 1), -threshold, effort)
