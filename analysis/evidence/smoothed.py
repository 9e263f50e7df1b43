"""Probabilistic certificates by median smoothing; never mixed with deterministic ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.evidence.smoothing import SMOOTHING
from certood.analysis.question import Question


class Smoothed(Evidence):
    """Radius and bounds of the smoothed detector, each with a confidence; its decisions replace the network's."""

    smoothed = True
    quantities = (
        Quantity(
            "radius_smoothing",
            of="radius",
            side="lower",
            kind="probabilistic",
            label="radius of the smoothed detector (probabilistic)",
            head="median radius",
            lowest=False,
        ),
        Quantity(
            "smoothed_lower",
            of="score",
            side="lower",
            kind="probabilistic",
            per_eps=True,
            label="lower bound of the smoothed score (probabilistic)",
        ),
        Quantity(
            "smoothed_upper",
            of="score",
            side="upper",
            kind="probabilistic",
            per_eps=True,
            label="upper bound of the smoothed score (probabilistic)",
        ),
    )

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The l2 radii (N,) and the bounds of the smoothed score (E, N)."""
        smoothing, eps = self.settings.smoothing, self.settings.eps
        radii, bounds, decisions = [], [], []
        for image, index in zip(images.to(torch.float32), known.indices, strict=True):
            seed = (self.settings.seed * 1_000_003 + index) % 2**31
            accepted, radius = smoothing.radius(question.module, question.score, question.threshold, image, seed)
            decisions.append(accepted)
            radii.append(radius)
            own = seed + 2**31  # beyond the seeds of all radii
            bounds.append(smoothing.quantile_bounds(question.module, question.score, image, eps, own))
        known.accepted = torch.tensor(decisions, device=images.device)
        known.methods.append(SMOOTHING)
        lower, upper = torch.tensor(bounds, dtype=torch.float64, device=images.device).permute(2, 1, 0)
        return {
            "radius_smoothing": torch.tensor(radii, dtype=torch.float64, device=images.device),
            "smoothed_lower": lower,
            "smoothed_upper": upper,
        }
