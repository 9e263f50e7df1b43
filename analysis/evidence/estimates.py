"""Estimates: gradient norms, largest sampled gradients and CLEVER. None of them certifies anything."""

import math
from collections.abc import Mapping, Sequence

import torch
from scipy import stats
from torch import Tensor

from certood.analysis.bounds.operations.norms import DUAL
from certood.analysis.evidence.attacks import generators, random_start, steepest_step
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question


class Estimates(Evidence):
    """Gradient norms at the image and at sampled points of the balls, CLEVER, and margin over gradient norm.

    A gradient norm is attained, so that no certified Lipschitz constant may lie below it; as an estimate of that constant it
    certifies nothing. CLEVER is fitted at the first ε alone, being the slowest.
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
            "lipschitz_clever": clever(samples[0]),
            "radius_gradient": known.margins / norms.clamp_min(1e-300),
        }


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


def clever(norms: Tensor, *, batch: int = 4) -> Tensor:
    """CLEVER's estimate (N,) of the local Lipschitz constant: the location of a reverse Weibull fit to batch maxima.

    Weng et al., ICLR 2018 (arXiv 1801.10578). `norms` (samples, N) are sampled gradient norms. Where the fit fails or falls
    below the largest sample, that sample is taken.
    """
    maxima = norms[: len(norms) // batch * batch].unflatten(0, (-1, batch)).amax(1)
    largest = norms.amax(0)
    found = largest.clone()
    for index in range(norms.shape[1]):
        column = maxima[:, index].cpu().numpy()
        if len(column) < 3 or column.max() - column.min() < 1e-9 * max(1.0, column.max()):
            continue
        try:
            _, location, _ = stats.weibull_max.fit(column, loc=column.max() * 1.01)
        except (RuntimeError, ValueError):
            continue
        if math.isfinite(location):
            found[index] = max(float(largest[index]), float(location))
    return found
