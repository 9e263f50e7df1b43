"""Estimates: gradient norms, largest sampled gradients, and CLEVER of points of its own. None of them certifies anything."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.norms import DUAL
from certood.analysis.evidence.attacks import generators, random_start, steepest_step
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.clever import BATCH, BATCHES, clever, uniform_points
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question


class Estimates(Evidence):
    """Gradient norms at the image and at sampled points of the balls, CLEVER, and margin over gradient norm.

    A gradient norm is attained, so that no certified Lipschitz constant may lie below it; as an estimate of that constant it
    certifies nothing. CLEVER is fitted at the first ε alone, being the slowest; it is not a number where gradients show no end.
    """

    quantities = (
        Quantity(
            "gradient_norm",
            of="lipschitz",
            side="lower",
            kind="found",
            label="gradient norm (estimate)",
            head="gradient norm (estimate)",
        ),
        Quantity(
            "sampled",
            of="lipschitz",
            side="lower",
            kind="found",
            per_eps=True,
            first="lipschitz_sampled",
            label="largest sampled gradient norm (estimate)",
            head="L sampled (estimate)",
        ),
        Quantity("lipschitz_clever", of="lipschitz", side="upper", kind="estimate", label="CLEVER (estimate)"),
        Quantity("radius_gradient", of="radius", side="lower", kind="estimate", label="gradient radius (estimate)"),
    )

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """Norms, constants and radii (N,), and the largest sampled norms (E, N)."""
        norms = gradient_norms(question, images)
        # Random numbers of its own: how much an attack draws changes no estimate.
        random = generators(self.settings.seed, known.indices, stream=1)
        samples = [
            sampled_gradient_norms(
                question, images, torch.full_like(norms, eps), random=random, samples=self.settings.samples
            )
            for eps in self.settings.eps
        ]
        return {
            "gradient_norm": norms,
            "sampled": torch.stack([part.amax(0) for part in samples]),
            "lipschitz_clever": self._clever(question, images, known, samples[0].amax(0)),
            "radius_gradient": known.margins / norms.clamp_min(1e-300),
        }

    def _clever(self, question: Question, images: Tensor, known: Known, sampled: Tensor) -> Tensor:
        """CLEVER (N,) at the first ε, from points of its own; no less than what was sampled."""
        eps, random = (
            torch.full_like(sampled, self.settings.eps[0]),
            generators(self.settings.seed, known.indices, stream=3),
        )
        maxima = []
        for _ in range(BATCHES):
            points = (uniform_points(images, eps, question.norm, random) for _ in range(BATCH))
            maxima.append(torch.stack([gradient_norms(question, each) for each in points]).amax(0))
        return torch.maximum(clever(torch.stack(maxima)), sampled)


def gradient_norms(question: Question, images: Tensor) -> Tensor:
    """‖∇S(x)‖_q (N,) in score per pixel, q the dual exponent: a lower bound of the local Lipschitz constant at x."""
    points = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(question.scores(points).sum(), points)
    found: Tensor = torch.linalg.vector_norm(slope.flatten(1), DUAL[float(question.norm)], dim=1)
    return found


def sampled_gradient_norms(
    question: Question, images: Tensor, eps: Tensor, *, random: Sequence[torch.Generator], samples: int = 16
) -> Tensor:
    """Norms (samples, N) of gradients at random points of the balls, half of them one steepest step further out.

    `random` has one generator per image.
    """
    found = []
    for index in range(samples):
        points = random_start(images, eps, question.norm, random).requires_grad_()
        (slope,) = torch.autograd.grad(question.scores(points).sum(), points)
        if index % 2:
            sign = 1 if index % 4 == 1 else -1
            step = images + sign * eps.view(-1, 1, 1, 1) * steepest_step(slope, question.norm)
            found.append(gradient_norms(question, step.clamp(0, 1)))
        else:
            found.append(torch.linalg.vector_norm(slope.flatten(1), DUAL[float(question.norm)], dim=1))
    return torch.stack(found)
