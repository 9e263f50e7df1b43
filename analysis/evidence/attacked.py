"""What attacks find: the distance of a changed decision, and the worst score in the ball of every ε."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from certood.analysis.evidence.attacks import ascend, distances, generators
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.nearest import attack_radii, nearer
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.evidence.second_attack import POINTS
from certood.analysis.question import Question


class Attacks(Evidence):
    """The smallest distance at which a changed decision was found, infinite where none was, and the worst scores found.

    The worst score is the highest one in the ball of an ID image, the lowest one of an OOD image. All points count by what the
    network itself says of them. Where a second attack was asked for, the nearer of both counts, and the search for worst scores
    starts there.
    """

    quantities = (
        Quantity(
            "radius_attack",
            of="radius",
            side="upper",
            kind="found",
            label="distance of an attack",
            head="radius attack",
        ),
        Quantity("attacked", of="score", side="lower", kind="found", per_eps=True, label="worst score found"),
    )

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The radii (N,) and the worst scores (E, N)."""
        random = generators(self.settings.seed, known.indices)
        radii, nearest = torch.zeros_like(known.scores), images.clone()
        right = known.right
        if len(right):
            radii[right], nearest[right] = attack_radii(
                question,
                images[right],
                known.accepted[right],
                known["radius_direct"][right],
                random=[random[int(row)] for row in right],
                steps=self.settings.attack_steps,
                restarts=self.settings.restarts,
            )
        if POINTS in known.values:
            closer = known["radius_second_attack"] < radii
            radii = torch.where(closer, known["radius_second_attack"], radii)
            nearest = torch.where(closer.view(-1, 1, 1, 1), known[POINTS], nearest)
        worst = []
        for eps in self.settings.eps:
            value, where = self._worst(question, images, known, eps, nearest, random)
            # A score beyond γ is a changed decision as well, perhaps a nearer one than those found so far.
            beyond = known.correct & ((value <= question.threshold) != known.accepted)
            found = torch.where(beyond, distances(where, images, question.norm), math.inf)
            found, where = nearer(question, images, known.accepted, found, where)
            better = found < radii
            radii = torch.where(better, found, radii)
            nearest = torch.where(better.view(-1, 1, 1, 1), where, nearest)
            worst.append(value)
        return {"radius_attack": radii, "attacked": torch.stack(worst)}

    def _worst(
        self,
        question: Question,
        images: Tensor,
        known: Known,
        eps: float,
        nearest: Tensor,
        random: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """The highest score found in the ball of an ID image, the lowest of an OOD image (N,), and where."""
        sign = 1.0 if known.kind == "id" else -1.0
        value, where = ascend(
            lambda points: sign * question.scores(points),
            images,
            torch.full_like(known.scores, eps),
            question.norm,
            random=random,
            steps=self.settings.attack_steps,
            restarts=self.settings.restarts,
            starts=[nearest],
        )
        return sign * value, where
