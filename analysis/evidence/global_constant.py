"""The global Lipschitz constant of the score, and the radius that it certifies at every image: margin over constant."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.direct import largest_radius
from certood.analysis.evidence.lipschitz import global_lipschitz
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question


@lru_cache(maxsize=4)
def global_constant(question: Question) -> float:
    """`global_lipschitz`, computed once for a question: it does not depend on the images."""
    return global_lipschitz(question)


class GlobalConstant(Evidence):
    """L with |S(y) − S(z)| ≤ L·‖y − z‖_p on the whole pixel range, and r = m/L: all that Lipschitz networks need."""

    quantities = (
        Quantity(
            "lipschitz_global",
            of="lipschitz",
            side="upper",
            kind="certified",
            label="global Lipschitz constant",
            head="L global",
            lowest=True,
        ),
        Quantity(
            "radius_global",
            of="radius",
            side="lower",
            kind="certified",
            label="radius from the global Lipschitz constant",
            head="radius from L global",
            lowest=False,
        ),
    )

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The constant (N,), the same for all images, and the radii (N,); nothing of a network that is bounded in part."""
        if not question.score.exact:
            return {}
        constant = global_constant(question)
        limit = largest_radius(question.norm, images[0].numel())
        margins = known.certain_margins(question, images)
        return {
            "lipschitz_global": torch.full_like(known.margins, constant),
            "radius_global": (margins / max(constant, 1e-300)).clamp_max(limit),
        }
