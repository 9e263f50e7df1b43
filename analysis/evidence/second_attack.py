"""A second opinion on how near a changed decision is: attacks of another library, of which the nearest point counts."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from certood.analysis.evidence.attack_libraries import library_by_name
from certood.analysis.evidence.attacks import distances, generators
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.nearest import changed_margins, nearer
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question

OWN = "certood"
# What later evidence knows the points by.
POINTS = "second_attack_points"


class SecondAttack(Evidence):
    """The smallest distance at which another library's attacks change a decision, infinite where they do not.

    Their points are clipped to the pixel range, and count by what the network itself says of them, in float64; each is drawn
    towards its image as far as the decision stays changed. The attack radius is the nearer of these and our own.
    """

    quantities = (
        Quantity("radius_second_attack", of="radius", side="upper", kind="found", label="distance of a second attack"),
    )

    @property
    def wanted(self) -> bool:
        """Only where a library is named."""
        return super().wanted and self.settings.second_attack is not None

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The radii (N,), and the points (N, C, H, W) at these distances."""
        assert self.settings.second_attack is not None, "asked for only where a library is named"
        library = library_by_name(self.settings.second_attack)
        radii, points = torch.zeros_like(known.scores), images.clone()
        right = known.right
        if len(right):
            random = generators(self.settings.seed, known.indices, stream=2)
            chosen, accepted = images[right], known.accepted[right]
            margins = changed_margins(question, accepted)
            best, where = torch.full_like(known.scores[right], math.inf), chosen.clone()
            own = [random[int(row)] for row in right]
            for found in library.points(margins, chosen, question.norm, own):
                distance, drawn = _counted(question, chosen, accepted, found)
                better = distance < best
                best = torch.where(better, distance, best)
                where = torch.where(better.view(-1, 1, 1, 1), drawn, where)
            radii[right], points[right] = best, where
        return {"radius_second_attack": radii, POINTS: points}


def _counted(question: Question, images: Tensor, accepted: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (N,) of points whose decision is not the one of their image, infinite for the others; the points drawn nearer."""
    finite = points.isfinite().flatten(1).all(1)
    inside = torch.where(finite.view(-1, 1, 1, 1), points, images).clamp(0, 1).to(images)
    with torch.no_grad():
        changed = changed_margins(question, accepted)(inside) > 0
    distance = torch.where(changed, distances(inside, images, question.norm), math.inf)
    return nearer(question, images, accepted, distance, inside)


def nearest_attacks(radii: Iterable[tuple[float, float]], library: str) -> dict[str, int]:
    """How many images have the attack radius by our own attack, and by that of a library.

    `radii` are the attack radius and that of the second attack of each image; images without an attack count for none.
    """
    found = Counter(library if second <= nearest else OWN for nearest, second in radii if 0 < nearest < math.inf)
    return {name: found[name] for name in (OWN, library)}
