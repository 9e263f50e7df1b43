"""Certificates of images: everything that is certified, attacked and estimated about each, batch by batch."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from certood.analysis.attacks import ascend, attack_radii
from certood.analysis.bounds import METHODS as BOUND_METHODS
from certood.analysis.bounds import LpBall, analyse, bound, capture, score_bounds
from certood.analysis.estimates import clever, gradient_norms, sampled_gradient_norms
from certood.analysis.lipschitz import local_lipschitz, min_rule_radius, nested, step_rule_radius
from certood.analysis.radii import Question, certified_radii, largest_radius
from certood.analysis.records import AtRadius, Certificate
from certood.analysis.smoothing import MedianSmoothing
from certood.checkpoints import Detector
from certood.errors import CannotCertify, CertoodError

METHODS = (*BOUND_METHODS, "smoothing")
# Two computations of the same score in float64 differ by rounding; what exceeds this is a violation.
ROUNDING = 1e-7


@dataclass(frozen=True)
class Settings:
    """What to certify, and how: the threat (norm, radii ε in pixels), the method of the bounds, and the effort.

    The first ε is the one to which `verdict` and the Lipschitz constants of a certificate belong. `tolerance` is that of
    certified radii; `attack_steps` and `restarts` are the effort of attacks, `samples` that of sampled gradients. Raises
    CertoodError for values that make no sense.
    """

    eps: tuple[float, ...] = (0.01,)
    norm: float = math.inf
    method: str = "crown"
    engine: str = "certood"
    iterations: int = 20
    tolerance: float = 0.01
    attack_steps: int = 30
    restarts: int = 2
    samples: int = 16
    seed: int = 0
    smoothing: MedianSmoothing = field(default_factory=MedianSmoothing)

    def __post_init__(self) -> None:
        if self.norm not in (math.inf, 2, 1):
            raise CertoodError(f"expected norm inf, 2 or 1, got {self.norm:g}")
        limit = 1.0 if self.norm == math.inf else math.inf
        if not self.eps or not all(0 < radius <= limit for radius in self.eps):
            raise CertoodError(f"expected radii 0 < eps <= {limit:g} in pixels, got {list(self.eps)}")
        if self.method not in METHODS:
            raise CertoodError(f"unknown method {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.method == "smoothing" and self.norm != 2:
            raise CertoodError("smoothing certifies l2 balls only; add --norm 2")
        if self.engine not in ("certood", "auto-lirpa"):
            raise CertoodError(f"unknown engine {self.engine!r}; expected certood or auto-lirpa")
        if not 0 < self.tolerance < 1:
            raise CertoodError(f"expected 0 < tolerance < 1, got {self.tolerance}")

    def record(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        plain = asdict(self)
        plain["norm"] = "inf" if self.norm == math.inf else f"{self.norm:g}"
        plain["eps"] = list(self.eps)
        return plain


def question_of(detector: Detector, norm: float = math.inf) -> Question:
    """What is asked of a detector; raises CannotCertify where it has no threshold or an operation without bounds."""
    if detector.threshold is None:
        raise CannotCertify("this detector has no threshold γ; store one with `certood evaluate RUN --calibrate`")
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
) -> list[Certificate]:
    """Certificates of images (N, C, H, W) in [0, 1], which are `kind` "id" or "ood".

    `indices` are what the records call the images, 0 … N − 1 by default. Raises CertoodError for images of another shape or
    range, and CannotCertify for a detector without threshold or with an unsupported operation.
    """
    if kind not in ("id", "ood"):
        raise CertoodError(f"expected kind id or ood, got {kind!r}")
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(detector.input_shape):
        raise CertoodError(
            f"expected images of shape (N, {', '.join(map(str, detector.input_shape))}), got {tuple(images.shape)}"
        )
    settings = settings or Settings()
    numbers = list(range(len(images))) if indices is None else list(indices)
    if settings.method == "smoothing":
        return [
            smoothed_certificate(detector, image, kind, name, number, settings)
            for image, number in zip(images, numbers, strict=True)
        ]
    question = question_of(detector, settings.norm)
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

    certified, attacked = torch.zeros(len(images)).double(), torch.zeros(len(images)).double()
    right = correct.nonzero().flatten()
    if len(right):
        own, part = accepted[right], images[right]
        certified[right] = certified_radii(
            question,
            part,
            own,
            method=settings.method,
            tolerance=settings.tolerance,
            guess=(0.7 * by_gradient[right]).clamp(1e-6, limit),
            iterations=settings.iterations,
        )
        attacked[right] = attack_radii(
            question,
            part,
            own,
            certified[right],
            steps=settings.attack_steps,
            restarts=settings.restarts,
            seed=settings.seed,
        )
    balls = _all_radii(question, images, kind, settings, accepted, correct, certified, attacked)
    ordered = sorted(range(len(settings.eps)), key=lambda place: settings.eps[place])
    constants = nested(torch.stack([balls[place].lipschitz for place in ordered]))
    for place, constant in zip(ordered, constants, strict=True):
        balls[place].lipschitz = constant
    grid = [settings.eps[place] for place in ordered]
    by_minimum = torch.where(correct, min_rule_radius(margins, grid, constants), 0.0)
    by_steps = torch.where(correct, step_rule_radius(margins, grid, constants), 0.0)
    # Both rules certify as well: whichever radius is largest holds.
    certified = torch.maximum(certified, torch.maximum(by_minimum, by_steps))
    seconds = (time.perf_counter() - begin) / len(images)
    records = []
    for row, index in enumerate(indices):
        at = tuple(ball.row(row, eps) for ball, eps in zip(balls, settings.eps, strict=True))
        sampled_constant = float(balls[0].sampled[row])
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
                lipschitz_sampled=sampled_constant,
                lipschitz_clever=float(balls[0].estimate[row]),
                lipschitz_certified=float(balls[0].lipschitz[row]),
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
            )
        )
    return records


@dataclass
class _Ball:
    """What is known of a batch over balls of one ε; every tensor is (N,)."""

    lower: Tensor
    upper: Tensor
    attacked: Tensor
    lipschitz: Tensor
    sampled: Tensor
    estimate: Tensor
    verdicts: list[str]

    def row(self, index: int, eps: float) -> AtRadius:
        return AtRadius(
            eps,
            float(self.lower[index]),
            float(self.upper[index]),
            float(self.attacked[index]),
            float(self.lipschitz[index]),
            float(self.sampled[index]),
            self.verdicts[index],
        )


def _all_radii(
    question: Question,
    images: Tensor,
    kind: str,
    settings: Settings,
    accepted: Tensor,
    correct: Tensor,
    certified: Tensor,
    attacked: Tensor,
) -> list[_Ball]:
    found = []
    for eps in settings.eps:
        ball = LpBall(images, eps, settings.norm)
        analysis = analyse(question.graph, ball, settings.method, iterations=settings.iterations)
        if settings.engine == "auto-lirpa":
            if question.absent_class:
                raise CannotCertify("the engine auto-lirpa is not offered for networks with an absent class")
            bounds = bound(
                question.graph,
                ball,
                settings.method,
                score=question.score,
                iterations=settings.iterations,
                engine="auto-lirpa",
            )
        else:
            bounds = score_bounds(analysis, question.score, absent_class=question.absent_class)
        # The threat raises the score of an ID image and lowers that of an OOD image.
        sign = 1.0 if kind == "id" else -1.0

        def outward(x: Tensor, sign: float = sign) -> Tensor:
            return sign * question.scores(x)

        generator = torch.Generator().manual_seed(settings.seed)
        worst, _ = ascend(
            outward,
            images,
            ball.eps,
            settings.norm,
            steps=settings.attack_steps,
            restarts=settings.restarts,
            generator=generator,
        )
        worst = sign * worst
        slopes = sampled_gradient_norms(question, images, ball.eps, samples=settings.samples, seed=settings.seed)
        kept = bounds.upper <= question.threshold if kind == "id" else bounds.lower > question.threshold
        kept = correct & (kept | (certified >= eps))
        changed = (worst > question.threshold) if kind == "id" else (worst <= question.threshold)
        changed = ~correct | changed | (attacked <= eps)
        verdicts = [
            "certified" if bool(good) else "refuted" if bool(bad) else "unknown"
            for good, bad in zip(kept, changed, strict=True)
        ]
        found.append(
            _Ball(
                bounds.lower,
                bounds.upper,
                worst,
                local_lipschitz(question, analysis, ball),
                slopes.amax(0),
                # The fit is the slowest of the estimates, and only the first ε reports it.
                clever(slopes) if eps == settings.eps[0] else slopes.amax(0),
                verdicts,
            )
        )
    return found


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


def smoothed_certificate(
    detector: Detector, image: Tensor, kind: str, name: str, index: int, settings: Settings
) -> Certificate:
    """The probabilistic l2 certificate of one image by median smoothing; certified columns stay empty (not a number)."""
    begin = time.perf_counter()
    if detector.threshold is None:
        raise CannotCertify("this detector has no threshold γ; store one with `certood evaluate RUN --calibrate`")
    image = LpBall(image[None], 0.0).centre[0].to(torch.float32)
    seed = (settings.seed * 1_000_003 + index) % 2**31
    accepted, radius = settings.smoothing.radius(
        detector.model, detector.score, detector.threshold, image, seed, absent_class=detector.absent_class
    )
    with torch.no_grad():
        score = float(detector.scores(image[None])[0])
    correct = accepted == (kind == "id")
    radius = radius if correct else 0.0
    at = tuple(
        AtRadius(
            eps,
            *settings.smoothing.quantile_bounds(
                detector.model, detector.score, image, eps, seed + 1, absent_class=detector.absent_class
            ),
            attacked=math.nan,
            lipschitz=math.nan,
            sampled=math.nan,
            verdict="certified" if radius >= eps else "unknown" if correct else "refuted",
        )
        for eps in settings.eps
    )
    empty = dict.fromkeys(
        (
            "gradient_norm",
            "lipschitz_sampled",
            "lipschitz_clever",
            "lipschitz_certified",
            "radius_gradient",
            "radius_lipschitz",
            "radius_step",
            "radius_certified",
            "radius_attack",
        ),
        math.nan,
    )
    return Certificate(
        set=name,
        kind=kind,
        index=index,
        score=score,
        threshold=detector.threshold,
        margin=abs(detector.threshold - score),
        accepted=accepted,
        radius_smoothing=radius,
        verdict=at[0].verdict,
        violations=0,
        seconds=time.perf_counter() - begin,
        at=at,
        **empty,
    )
