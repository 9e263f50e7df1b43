"""What is known over the balls of one ε: bounds of the score, the worst attacked score, Lipschitz constants, verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certood.analysis.bounds import Analysis, LpBall, analyse, engine_by_name, score_bounds
from certood.analysis.evidence.attacks import ascend
from certood.analysis.evidence.estimates import clever, sampled_gradient_norms
from certood.analysis.evidence.lipschitz import local_lipschitz, nested
from certood.analysis.question import Question
from certood.analysis.records import AtRadius
from certood.analysis.settings import Settings


@dataclass(frozen=True)
class Known:
    """What is known of a batch before balls of a given size are looked at; images (N, C, H, W), the rest (N,).

    `certified` and `attacked` are the radii from both sides, `nearest` the points at the attacked distance.
    """

    images: Tensor
    kind: str
    correct: Tensor
    certified: Tensor
    attacked: Tensor
    nearest: Tensor


@dataclass(frozen=True)
class Balls:
    """What is known of a batch over balls of one ε; every tensor is (N,). `clever` is an estimate, as is `sampled`.

    `method` names what computed the bounds, also where another method was asked for.
    """

    eps: float
    lower: Tensor
    upper: Tensor
    attacked: Tensor
    lipschitz: Tensor
    sampled: Tensor
    clever: Tensor
    verdicts: tuple[str, ...]
    method: str

    def row(self, index: int) -> AtRadius:
        """The part of one image."""
        return AtRadius(
            self.eps,
            float(self.lower[index]),
            float(self.upper[index]),
            float(self.attacked[index]),
            float(self.lipschitz[index]),
            float(self.sampled[index]),
            self.verdicts[index],
        )


def all_balls(question: Question, known: Known, settings: Settings, random: Sequence[torch.Generator]) -> list[Balls]:
    """What is known at every ε of the settings, in their order; certified constants never exceed those of larger balls."""
    found = [_balls(question, known, settings, eps, random, first=not place) for place, eps in enumerate(settings.eps)]
    ordered = sorted(range(len(found)), key=lambda place: settings.eps[place])
    constants = nested(torch.stack([found[place].lipschitz for place in ordered]))
    for place, constant in zip(ordered, constants, strict=True):
        found[place] = replace(found[place], lipschitz=constant)
    return found


def _balls(
    question: Question,
    known: Known,
    settings: Settings,
    eps: float,
    random: Sequence[torch.Generator],
    *,
    first: bool,
) -> Balls:
    ball = LpBall(known.images, eps, settings.norm)
    bounding = engine_by_name(settings.engine).analyse(
        question.graph, ball, settings.method, iterations=settings.iterations, dtype=settings.precision
    )
    bounds = score_bounds(bounding, question.score, absent_class=question.absent_class)
    if isinstance(bounding, Analysis):
        analysis = bounding
    else:
        # Gradients are bounded from boxes of every node, which another engine does not give.
        analysis = analyse(
            question.graph, ball, settings.method, iterations=settings.iterations, dtype=settings.precision
        )
    method = bounding.method
    worst = _worst_scores(question, known, settings, ball, random)
    slopes = sampled_gradient_norms(question, known.images, ball.eps, random=random, samples=settings.samples)
    sampled = slopes.amax(0)
    if known.kind == "id":
        kept, changed = bounds.upper <= question.threshold, worst > question.threshold
    else:
        kept, changed = bounds.lower > question.threshold, worst <= question.threshold
    kept = known.correct & (kept | (known.certified >= eps))
    changed = ~known.correct | changed | (known.attacked <= eps)
    return Balls(
        eps,
        bounds.lower,
        bounds.upper,
        worst,
        local_lipschitz(question, analysis, ball),
        sampled,
        # The fit is the slowest of the estimates, and only the first ε reports it.
        clever(slopes) if first else sampled,
        tuple(
            "certified" if good else "refuted" if bad else "unknown"
            for good, bad in zip(kept.tolist(), changed.tolist(), strict=True)
        ),
        method + (", branch and bound" if settings.parts else ""),
    )


def _worst_scores(
    question: Question, known: Known, settings: Settings, ball: LpBall, random: Sequence[torch.Generator]
) -> Tensor:
    """The highest score found in the ball of an ID image, the lowest of an OOD image (N,)."""
    sign = 1.0 if known.kind == "id" else -1.0
    worst, _ = ascend(
        lambda points: sign * question.scores(points),
        known.images,
        ball.eps,
        settings.norm,
        random=random,
        steps=settings.attack_steps,
        restarts=settings.restarts,
        starts=[known.nearest],
    )
    return sign * worst
