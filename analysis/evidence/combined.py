"""The certified radius: the largest of those that any evidence certifies, since each of them holds."""

from collections.abc import Mapping

import torch
from torch import Tensor

from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question


class Combined(Evidence):
    """The largest certified radius (N,) of every image."""

    quantities = (
        Quantity(
            "radius_certified",
            of="radius",
            side="lower",
            kind="certified",
            label="certified radius",
            head="radius certified",
            lowest=False,
        ),
    )

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The largest of the certified radii that are known."""
        return {"radius_certified": torch.stack(known.every("radius", "lower", "certified")).amax(0)}
