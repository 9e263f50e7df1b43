"""Certificates of images: everything that is certified, attacked and estimated about each, batch by batch."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds import LpBall, capture
from certood.analysis.evidence.attacks import generators
from certood.analysis.evidence.direct import certified_radii, largest_radius
from certood.analysis.evidence.estimates import gradient_norms
from certood.analysis.evidence.lipschitz import min_rule_radius, step_rule_radius
from certood.analysis.evidence.nearest import attack_radii
from certood.analysis.evidence.per_radius import Known, all_balls
from certood.analysis.evidence.refined import refined_radii
from certood.analysis.evidence.smoothed import smoothed_certificate
from certood.analysis.question import Question
from certood.analysis.records import AtRadius, Certificate
from certood.analysis.settings import Settings
from certood.detector import Detector
from certood.errors import CannotCertify, CertoodError, MissingThreshold

# Two computations of the same score in float64 differ by rounding; what exceeds this is a violation.
ROUNDING = 1e-7


def question_of(detector: Detector, norm: float = math.inf) -> Question:
    """What is asked of a detector; raises CannotCertify where it has no threshold or an operation without bounds."""
    if detector.threshold is None:
        raise MissingThreshold
    graph = capture(detector.model, torch.zeros(1, *detector.input_shape))
    return Question(graph, detector.score, detector.threshold, norm, detector.absent_class)


def certify(
    detector: Detector,
    images: Tensor,
    *,
    kind: str = "id",
    name: str = "images",
    indices: Sequence[int] | None = None,
    settings: Settings | None = None,
    batch_size: int = 64,
    question: Question | None = None,
) -> list[Certificate]:
    """Certificates of images (N, C, H, W) in [0, 1], which are `kind` "id" or "ood".

    `indices` are what the records call the images, 0 … N − 1 by default; attacks draw their random numbers by them.
    `question` spares capturing the network again (see `question_of`). Raises CertoodError for images of another shape or
    range, and CannotCertify for a detector without threshold or with an unsupported operation.
    """
    if kind not in ("id", "ood"):
        raise CertoodError(f"expected kind id or ood, got {kind!r}")
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(detector.input_shape):
        raise CertoodError(
            f"expected images of shape (N, {', '.join(map(str, detector.input_shape))}), got {tuple(images.shape)}"
        )
    if not len(images):
        raise CertoodError(f"{name} has no images to certify")
    settings = settings or Settings()
    numbers = list(range(len(images))) if indices is None else list(indices)
    if len(numbers) != len(images):
        raise CertoodError(f"expected an index for each of {len(images)} images, got {len(numbers)}")
    if settings.method == "smoothing":
        return [
            smoothed_certificate(detector, image, kind, name, number, settings)
            for image, number in zip(images, numbers, strict=True)
        ]
    question = question or question_of(detector, settings.norm)
    found: list[Certificate] = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        found += certify_batch(question, images[part], kind, name, numbers[part], settings)
    return found


def certify_batch(
    question: Question, images: Tensor, kind: str, name: str, indices: Sequence[int], settings: Settings
) -> list[Certificate]:
    """Certificates of one batch, all of it in float64."""
    begin = time.perf_counter()
    images = LpBall(images, 0.0, settings.norm).centre
    with torch.no_grad():
        scores = question.scores(images)
    if not scores.isfinite().all():
        raise CannotCertify(f"{name}: the score of an image is not finite")
    accepted = scores <= question.threshold
    correct = accepted == (kind == "id")
    margins = (question.threshold - scores).abs()
    norms = gradient_norms(question, images)
    by_gradient = margins / norms.clamp_min(1e-300)
    limit = largest_radius(settings.norm, images[0].numel())

    random = generators(settings.seed, indices)
    certified, attacked = torch.zeros(len(images)).double(), torch.zeros(len(images)).double()
    nearest = images.clone()
    right = correct.nonzero().flatten()
    if len(right):
        own, part = accepted[right], images[right]
        certified[right] = certified_radii(
            question,
            part,
            own,
            method=settings.method,
            tolerance=settings.tolerance,
            # Bounds of a falling score are looser; a start below the radius costs less than one above it.
            guess=(torch.where(own, 0.7, 0.35) * by_gradient[right]).clamp(1e-6, limit),
            iterations=settings.iterations,
            engine=settings.engine,
            dtype=settings.precision,
        )
        attacked[right], nearest[right] = attack_radii(
            question,
            part,
            own,
            certified[right],
            random=[random[int(row)] for row in right],
            steps=settings.attack_steps,
            restarts=settings.restarts,
        )
        if settings.parts:
            certified[right] = refined_radii(
                question,
                part,
                own,
                certified[right],
                attacked[right],
                parts=settings.parts,
                tolerance=settings.tolerance,
            )
    known = Known(images, kind, correct, certified, attacked, nearest)
    balls = all_balls(question, known, settings, random)
    ordered = sorted(balls, key=lambda ball: ball.eps)
    grid, constants = [ball.eps for ball in ordered], torch.stack([ball.lipschitz for ball in ordered])
    by_minimum = torch.where(correct, min_rule_radius(margins, grid, constants), 0.0)
    by_steps = torch.where(correct, step_rule_radius(margins, grid, constants), 0.0)
    # Both rules certify as well: whichever radius is largest holds.
    certified = torch.maximum(certified, torch.maximum(by_minimum, by_steps))
    seconds = (time.perf_counter() - begin) / len(images)
    records = []
    for row, index in enumerate(indices):
        at = tuple(ball.row(row) for ball in balls)
        violations = _violations(certified[row], attacked[row], norms[row], at, float(scores[row]), bool(correct[row]))
        records.append(
            Certificate(
                set=name,
                kind=kind,
                index=int(index),
                score=float(scores[row]),
                threshold=question.threshold,
                margin=float(margins[row]),
                accepted=bool(accepted[row]),
                gradient_norm=float(norms[row]),
                lipschitz_sampled=at[0].sampled,
                lipschitz_clever=float(balls[0].clever[row]),
                lipschitz_certified=at[0].lipschitz,
                radius_gradient=float(by_gradient[row]),
                radius_lipschitz=float(by_minimum[row]),
                radius_step=float(by_steps[row]),
                radius_certified=float(certified[row]),
                radius_attack=float(attacked[row]),
                radius_smoothing=math.nan,
                verdict=at[0].verdict,
                violations=violations,
                seconds=seconds,
                at=at,
                method=balls[0].method,
            )
        )
    return records


def _violations(
    certified: Tensor, attacked: Tensor, norm: Tensor, at: Sequence[AtRadius], score: float, correct: bool
) -> int:
    """How many of the inequalities that must hold do not: each would mean that something here is not sound."""
    count = int(correct and bool(certified > attacked * (1 + 1e-9)))
    for part in at:
        slack = ROUNDING * (1 + abs(score))
        count += not part.lower - slack <= score <= part.upper + slack
        count += not part.lower - slack <= part.attacked <= part.upper + slack
        count += max(part.sampled, float(norm)) > part.lipschitz * (1 + ROUNDING) + ROUNDING
    return count
