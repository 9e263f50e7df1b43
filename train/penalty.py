"""The gradient term L_∇, and the whole forward part of a training step (Sharifi et al., ECCV 2024)."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.errors import CertoodError
from certood.scores import Score
from certood.train.batch_statistics import Statistics, fixed_statistics, recorded_statistics
from certood.train.objectives import Objective


@dataclass(frozen=True)
class GradientPenalty:
    """λ_∇, and how the gradient norm is made differentiable.

    `exact` differentiates ‖∇ₓS‖₂ itself (double backward). `finite-difference` holds v = ∇S/‖∇S‖ constant and uses
    (S(x + hv) − S(x))/h with h = `step`, an l2 distance in pixels (Finlay & Oberman, arXiv 1905.11468, eq. 8): it needs no
    double backward, and a second forward over samples with an open gate only.

    With batch normalisation in train mode the two differ: `exact` also sees how an image moves the batch statistics, and
    with them the scores of the others; the finite difference holds the statistics of the first forward.
    """

    weight: float = 0.0
    mode: Literal["exact", "finite-difference"] = "exact"
    step: float = 0.01

    def __post_init__(self) -> None:
        if self.weight < 0 or self.step <= 0:
            raise CertoodError(f"expected weight >= 0 and step > 0, got {self.weight} and {self.step}")


class Terms(NamedTuple):
    """The loss and its parts, scalars; total = cross_entropy + λ_S·outlier + λ_∇·gradient."""

    total: Tensor
    cross_entropy: Tensor
    outlier: Tensor
    gradient: Tensor


class TrainingStep(nn.Module):
    """The forward part of a step as one module, so that a data-parallel wrapper sees one forward and one backward.

    ID images and outliers go through ONE joint forward, and running statistics are updated once. Raises CertoodError for a
    finite difference through active dropout, whose two forwards would not agree.
    """

    def __init__(self, model: nn.Module, objective: Objective, penalty: GradientPenalty) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.penalty = penalty
        random = [
            name
            for name, part in model.named_modules()
            if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
        ]
        if penalty.weight and penalty.mode == "finite-difference" and random:
            raise CertoodError(
                f"a finite difference needs two forwards that agree, but {random[0]} drops units at random; "
                "use gradient.mode = 'exact' or no dropout"
            )

    def forward(self, images_in: Tensor, labels: Tensor, images_out: Tensor | None) -> Terms:
        """Terms of ID images (N, C, H, W) with labels (N,), and outliers (M, C, H, W) or None; pixels in [0, 1]."""
        images = images_in if images_out is None else torch.cat([images_in, images_out])
        with_gradient = self.penalty.weight > 0
        differs = with_gradient and self.penalty.mode == "finite-difference"
        if with_gradient:
            images = images.detach().requires_grad_()
        statistics: Statistics = {}
        with recorded_statistics(self.model, statistics) if differs else nullcontext():
            logits = _at_least_float32(self.model(images))
        logits_in, logits_out = logits[: len(labels)], logits[len(labels) :]
        cross_entropy = F.cross_entropy(logits_in, labels)
        zero = cross_entropy.new_zeros(())
        outlier = self.objective.outlier_term(logits_in, logits_out) if len(logits_out) else zero
        gradient = zero
        if with_gradient:
            scores = self.objective.score(logits)
            share = gate_shares(scores.detach(), len(labels), self.objective)
            if share.any():
                gradient = (
                    self._finite_difference(images, scores, share, statistics)
                    if differs
                    else (share * _norms(scores[share > 0].sum(), images, create_graph=True)).sum()
                )
        total = cross_entropy + self.objective.weight * outlier + self.penalty.weight * gradient
        return Terms(total, cross_entropy, outlier, gradient)

    def _finite_difference(self, images: Tensor, scores: Tensor, share: Tensor, statistics: Statistics) -> Tensor:
        opened = (share > 0).nonzero().flatten()
        start = images.detach()[opened]
        (slope,) = torch.autograd.grad(scores[opened].sum(), images, retain_graph=True)
        slope = slope[opened]
        norms = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
        moved = start + self.penalty.step * slope / norms.view(-1, 1, 1, 1)
        before = scores[opened]
        with fixed_statistics(statistics):
            if torch.is_autocast_enabled(images.device.type):
                # A difference of scores rounded to bf16 would be noise: both are computed again in full precision.
                with torch.autocast(images.device.type, enabled=False):
                    both = self.objective.score(self.model(torch.cat([start, moved])))
                before, after = both.chunk(2)
            else:
                after = self.objective.score(self.model(moved))
        return (share[opened] * (after - before) / self.penalty.step).sum()


def gate_shares(scores: Tensor, count_in: int, objective: Objective) -> Tensor:
    """What each sample's gradient norm counts in L_∇ (N+M,): 1/N or 1/M where its gate is open, 0 where it is closed.

    The first `count_in` scores are those of ID images, open at S ≤ m_in; the others are outliers', open at S ≥ m_out.
    """
    inside, outside = scores[:count_in], scores[count_in:]
    return torch.cat(
        [
            (inside <= objective.margin_in).to(scores.dtype) / max(len(inside), 1),
            (outside >= objective.margin_out).to(scores.dtype) / max(len(outside), 1),
        ]
    )


def gradient_norms(model: nn.Module, images: Tensor, score: Score) -> Tensor:
    """‖∇ₓS‖₂ per image (N,) in units of the score per pixel unit, for images (N, C, H, W) in [0, 1].

    An estimate: a LOWER bound of the local Lipschitz constant around the image, which certifies nothing.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return _norms(score(model(images)).sum(), images, create_graph=False)


def _norms(summed: Tensor, images: Tensor, *, create_graph: bool) -> Tensor:
    (slope,) = torch.autograd.grad(summed, images, create_graph=create_graph)
    norms: Tensor = torch.linalg.vector_norm(_at_least_float32(slope), dim=(1, 2, 3))
    return norms


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
