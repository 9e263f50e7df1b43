"""Certified radii made larger by branch and bound, between what linear bounds certify and what an attack has refuted."""

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from certood.analysis.bounds import LpBall, analyse
from certood.analysis.bounds.branching import Effort, branched_least, branching_nodes, score_functions
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.direct import largest_radius
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question
from certood.errors import CertoodError

# Bounds so little above 0 are not told from rounding.
LEAST_MARGIN = 1e-9


class Refined(Evidence):
    """Radii between what direct bounds certify and what an attack has refuted, certified by branch and bound."""

    quantities = (
        Quantity("radius_refined", of="radius", side="lower", kind="certified", label="radius by branch and bound"),
    )

    @property
    def wanted(self) -> bool:
        """Only where the settings allow parts or time: it is slow."""
        return super().wanted and (self.settings.parts > 0 or self.settings.timeout > 0)

    def check(self, question: Question) -> None:
        """Raise CertoodError for a network without elementwise activations, at whose inputs balls are split."""
        if not branching_nodes(question.graph):
            raise CertoodError(
                "parts and timeout say nothing of this network: it has no elementwise activation at which a ball could be "
                "split; leave them out"
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
                parts=self.settings.parts or math.inf,
                seconds=self.settings.timeout or math.inf,
                tolerance=self.settings.tolerance,
                advance=known.advance,
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
    parts: float = math.inf,
    seconds: float = math.inf,
    tolerance: float = 0.01,
    max_probes: int = 6,
    advance: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """Certified radii (N,) in pixels, none below `certified` (N,), by bisection up to the attack radii `attacked` (N,).

    Each probe splits the ball of an image into at most `parts` parts. With a limit of `seconds` an image, images are taken one by
    one, and a probe takes at most half of the time that is left. `advance` is told of how many images are done.
    """
    low = certified.to(torch.float64).clone()
    high = attacked.to(torch.float64).clamp_max(largest_radius(question.norm, images[0].numel()))
    together = 1 if seconds < math.inf else len(images)
    for group in torch.arange(len(images), device=images.device).split(together):
        end = time.monotonic() + seconds
        for _ in range(max_probes):
            waiting = group[(low[group] > 0) & (high[group] > low[group] * (1 + tolerance))]
            left = end - time.monotonic()
            if not len(waiting) or left <= 0:
                break
            eps = (low[waiting] * high[waiting]).sqrt()
            margins = torch.empty_like(eps)
            for decision in (True, False):
                members = (accepted[waiting] == decision).nonzero().flatten()
                if len(members):
                    ball = LpBall(images[waiting[members]], eps[members], question.norm)
                    margins[members] = _margins(question, ball, decision, Effort(parts, left / 2))
            kept = margins > LEAST_MARGIN
            low[waiting[kept]], high[waiting[~kept]] = eps[kept], eps[~kept]
        advance(len(group))
    return low


def _margins(question: Question, ball: LpBall, accepted: bool, effort: Effort) -> Tensor:
    """Lower bounds (N,) of γ − S, or of S − γ, on the scale of the score's rows, sought until their signs are known."""
    analysis = analyse(question.graph, ball, "crown")
    functions = score_functions(analysis, question.score, "upper" if accepted else "lower", question.threshold)
    return branched_least(analysis, functions, effort, target=LEAST_MARGIN)
