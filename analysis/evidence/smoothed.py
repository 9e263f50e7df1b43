"""Probabilistic certificates of images by median smoothing; never mixed with deterministic ones."""

import math
import time

import torch
from torch import Tensor

from certood.analysis.bounds import LpBall
from certood.analysis.records import AtRadius, Certificate
from certood.analysis.settings import Settings
from certood.detector import Detector
from certood.errors import MissingThreshold


def smoothed_certificate(
    detector: Detector, image: Tensor, kind: str, name: str, index: int, settings: Settings
) -> Certificate:
    """The probabilistic l2 certificate of one image by median smoothing; certified columns stay empty (not a number)."""
    begin = time.perf_counter()
    if detector.threshold is None:
        raise MissingThreshold
    image = LpBall(image[None], 0.0).centre[0].to(torch.float32)
    seed = (settings.seed * 1_000_003 + index) % 2**31
    accepted, radius = settings.smoothing.radius(
        detector.model, detector.score, detector.threshold, image, seed, absent_class=detector.absent_class
    )
    with torch.no_grad():
        score = float(detector.scores(image[None])[0])
    correct = accepted == (kind == "id")
    radius = radius if correct else 0.0
    bounds = settings.smoothing.quantile_bounds(
        detector.model, detector.score, image, settings.eps, seed + 1, absent_class=detector.absent_class
    )
    at = tuple(
        AtRadius(
            eps,
            *limits,
            attacked=math.nan,
            lipschitz=math.nan,
            sampled=math.nan,
            verdict="certified" if radius >= eps else "unknown" if correct else "refuted",
        )
        for eps, limits in zip(settings.eps, bounds, strict=True)
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
        method="smoothing",
        at=at,
        **empty,
    )
