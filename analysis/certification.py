"""Certificates of images: everything that is certified, attacked and estimated about each, batch by batch."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certood.analysis.bounds import Graph, LpBall, capture
from certood.analysis.bounds.float64_copy import float64_copy, own_precision
from certood.analysis.bounds.witness import rounding
from certood.analysis.evidence.base import Known
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.evidence.registry import evidence_for
from certood.analysis.evidence.sandwich import violations
from certood.analysis.evidence.verdicts import verdicts
from certood.analysis.question import Question, Scored
from certood.analysis.records import AtRadius, Certificate
from certood.analysis.settings import Settings
from certood.detector import Detector
from certood.devices import require_float64
from certood.errors import CannotCertify, CertoodError, MissingThreshold

# Rounding of scores that are nearly zero, such as divergences, is that of logits: scores count as at least so large there.
LEAST_SCORE = 1e-3


def question_of(
    detector: Detector, norm: float = math.inf, *, smoothed: bool = False, bound_base: bool = False
) -> Question:
    """What is asked of a detector; raises CannotCertify where it has no threshold or an operation without bounds.

    Smoothing needs no bounds: the network is not captured, and runs in its own precision. Of a guarded detector only the guard
    is bounded, unless `bound_base` asks for the classifier as well. All that is asked is computed where the detector's network
    is; raises DeviceError for a device without float64.
    """
    if detector.threshold is None:
        raise MissingThreshold
    require_float64(detector.device)
    score, threshold = detector.output_score, detector.threshold
    if smoothed:
        return Question(Graph((), _InOwnPrecision(detector.model).eval()), score, threshold, norm)
    part, bounded = detector.bounded_part(whole=bound_base)
    graph = capture(part, torch.zeros(1, *detector.input_shape, device="cpu"), detector.device)
    if part is detector.model:
        return Question(graph, bounded, threshold, norm)
    whole = float64_copy(detector.model)
    return Question(graph, bounded, threshold, norm, Scored(whole, score))


class _InOwnPrecision(nn.Module):
    """A network that takes images of float32, to which noise is added, whatever its own precision is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.precision = network, own_precision(network)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (N, K) of images (N, C, H, W)."""
        outputs: Tensor = self.network(images.to(self.precision))
        return outputs


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
    advance: Callable[[float], None] = lambda _: None,
) -> list[Certificate]:
    """Certificates of images (N, C, H, W) in [0, 1], which are `kind` "id" or "ood".

    `indices` are what the records call the images, 0 … N − 1 by default; attacks draw their random numbers by them.
    `question` spares capturing the network again (see `question_of`); `advance` is told how many images' worth of the work is
    newly done, several times a batch. Raises CertoodError for images of another shape or range, and CannotCertify for a detector
    without threshold, with an unsupported operation, or with other decisions in its own precision than in float64.
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
    question = question or question_of(
        detector, settings.norm, smoothed=settings.smoothed, bound_base=settings.bound_base
    )
    for evidence in evidence_for(settings):
        evidence.check(question)
    found: list[Certificate] = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        begin = time.perf_counter()
        pixels = LpBall(images[part].to(question.device), 0.0, settings.norm).centre
        known = _scored(question, pixels, kind, name, numbers[part], settings)
        own = _own_scores(detector, pixels, name)
        _refuse_other_decisions(detector, own, known, question.threshold, name)
        _gather(question, pixels, known, settings, advance)
        difference = (own - known.scores).abs()
        seconds = (time.perf_counter() - begin) / len(pixels)
        found += _records(question, known, name, settings, difference, seconds)
    return found


def _scored(
    question: Question, images: Tensor, kind: str, name: str, indices: Sequence[int], settings: Settings
) -> Known:
    """Scores and decisions of a batch, by the network itself."""
    with torch.no_grad():
        scores = question.scores(images.to(torch.float32) if settings.smoothed else images)
        copied = None if settings.smoothed else question.graph_scores(images)
    if not scores.isfinite().all():
        raise CannotCertify(f"{name}: the score of an image is not finite")
    margins, accepted = (question.threshold - scores).abs(), scores <= question.threshold
    return Known(kind, indices, scores, margins, accepted, copied)


@dataclass
class _Told:
    """Passes on how many `images` one of several kinds of evidence is done with, as a share of all that is asked of them."""

    advance: Callable[[float], None]
    kinds: int
    images: float = 0.0

    def __call__(self, count: float) -> None:
        """So many more are done."""
        self.images += count
        self.advance(count / self.kinds)


def _gather(
    question: Question, images: Tensor, known: Known, settings: Settings, advance: Callable[[float], None]
) -> None:
    """Ask all evidence that the settings want; wrong decisions have the radius 0."""
    wanted = evidence_for(settings)
    for evidence in wanted:
        told = _Told(advance, len(wanted))
        known.advance = told
        found = evidence(question, images, known)
        known.values.update(found)
        computed = [quantity for quantity in evidence.quantities if quantity.name in found]
        known.quantities += computed
        for quantity in computed:
            if quantity.zero_where_wrong:
                known.values[quantity.name] = torch.where(known.correct, known[quantity.name], 0.0)
        told(len(images) - told.images)


def _own_scores(detector: Detector, images: Tensor, name: str) -> Tensor:
    """Scores (N,) of the detector as it is deployed, usually in float32; raises CannotCertify where one is not finite."""
    precision = own_precision(detector.model)
    with torch.no_grad():
        scores = detector.scores(images.to(precision)).to(images)
    if not scores.isfinite().all():
        raise CannotCertify(f"{name}: the score of an image is not finite in {precision}, in which the network runs")
    return scores


def _refuse_other_decisions(detector: Detector, own: Tensor, known: Known, threshold: float, name: str) -> None:
    """Raise CannotCertify where the detector as it is deployed decides otherwise than its copy, and not by rounding."""
    size = known.scores.abs().clamp_min(max(abs(threshold), LEAST_SCORE))
    apart = (own - known.scores).abs() > rounding(own_precision(detector.model)) * size
    other = torch.nonzero(apart & ((own <= threshold) != known.accepted)).flatten().tolist()
    if other:
        first = other[0]
        raise CannotCertify(
            f"{name}, image {known.indices[first]}: the network in its own precision has the score {float(own[first]):.6g}, "
            f"its copy in float64 {float(known.scores[first]):.6g}, on the other side of γ = {threshold:.6g}: something in it "
            "depends on the precision, and certificates would be those of the copy"
        )


def _records(
    question: Question, known: Known, name: str, settings: Settings, difference: Tensor, seconds: float
) -> list[Certificate]:
    """The records of a batch."""
    failed = violations(known)
    judged = verdicts(question.threshold, known, settings)
    plain = [quantity for quantity in known.quantities if not quantity.per_eps]
    per_eps = [quantity for quantity in known.quantities if quantity.per_eps]
    records = []
    for row, index in enumerate(known.indices):
        at = tuple(
            AtRadius(eps, judged[place][row], _values(per_eps, known, (place, row)))
            for place, eps in enumerate(settings.eps)
        )
        known_first = at[0].values
        first = {each.first: known_first[each.name] for each in per_eps if each.first and each.name in known_first}
        records.append(
            Certificate(
                set=name,
                kind=known.kind,
                index=int(index),
                score=float(known.scores[row]),
                threshold=question.threshold,
                margin=float(known.margins[row]),
                accepted=bool(known.accepted[row]),
                float32_difference=float(difference[row]),
                verdict=at[0].verdict,
                violations=int(failed[row]),
                seconds=seconds,
                method=", ".join(known.methods),
                values=_values(plain, known, row) | first,
                at=at,
            )
        )
    return records


def _values(quantities: Sequence[Quantity], known: Known, place: int | tuple[int, int]) -> dict[str, float]:
    """What is known of an image; what is not a number is not."""
    values = {quantity.name: float(known[quantity.name][place]) for quantity in quantities}
    return {name: value for name, value in values.items() if not math.isnan(value)}
