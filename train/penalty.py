"""The gradient term L_∇ (Sharifi et al., ECCV 2024)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from certood.errors import CertoodError
from certood.scores import Score
from certood.train.batch_statistics import Statistics, fixed_statistics


@dataclass(frozen=True)
class GradientPenalty:
    """λ_∇, and how the gradient norm is made differentiable.

    `exact` differentiates ‖∇ₓS‖₂ itself (double backward). `finite-difference` holds v = ∇S/‖∇S‖ constant and uses
    (S(x + hv) − S(x))/h with h = `step`, an l2 distance in pixels (Finlay & Oberman, arXiv 1905.11468, eq. 8): it needs no
    double backward, and a second forward over samples with an open gate only.

    The difference is for smooth networks (GELU, SiLU, softplus) whose operations have no double backward, as fused attention
    has none. Where a network has kinks (ReLU, max pooling) its gradient with respect to the weights is another one at every h:
    between x and x + hv units switch, each of which moves the difference by its weight over h, while the exact term, at a
    point, sees none of them. The two gradients then point in different directions; with softplus in the place of ReLU they agree.

    With `every` = k only each k-th step has the term, at k times its weight (lazy regularisation: Karras et al., CVPR 2020, arXiv
    1912.04958, appendix B); the first step has it.

    With batch normalisation in train mode the two differ: `exact` also sees how an image moves the batch statistics, and
    with them the scores of the others; the finite difference holds the statistics of the first forward.
    """

    weight: float = 0.0
    mode: Literal["exact", "finite-difference"] = "exact"
    step: float = 0.01
    every: int = 1

    def __post_init__(self) -> None:
        if self.weight < 0 or self.step <= 0 or self.every < 1:
            raise CertoodError(
                f"expected weight >= 0, step > 0 and every >= 1, got {self.weight}, {self.step} and {self.every}"
            )

    def times(self, step: int) -> int:
        """How often the term counts in a step of training, counted from 0: `every` times in each `every`-th step, else never."""
        return self.every if self.weight and step % self.every == 0 else 0


@contextmanager
def double_backward_explained() -> Iterator[None]:
    """Within a backward pass through the exact term: an operation that cannot be differentiated twice is named, with a remedy."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"derivative for (\S+) is not implemented", str(error))
        if found is None:
            raise
        raise CertoodError(
            f"the exact gradient term differentiates twice, and PyTorch has no derivative of {found[1]}: use "
            "gradient.mode = 'finite-difference', which is as good where the network is smooth (GELU, SiLU, softplus) and biased "
            "where it has kinks (ReLU), or operations that have one (attention that is not fused)"
        ) from error


def gradient_term(
    penalty: GradientPenalty,
    model: nn.Module,
    score: Score,
    images: Tensor,
    scores: Tensor,
    shares: Tensor,
    statistics: Statistics,
) -> Tensor:
    """L_∇, a scalar: Σᵢ shareᵢ·‖∇ₓS(xᵢ)‖₂ over images (N, C, H, W) that require gradients, with their scores (N,).

    `statistics` are those of the batch normalisations in the forward that gave the scores; only the finite difference
    uses them.
    """
    if penalty.mode == "finite-difference":
        return _finite_difference(penalty.step, model, score, images, scores, shares, statistics)
    return (shares * _norms(scores[shares > 0].sum(), images, create_graph=True)).sum()


def _finite_difference(
    step: float,
    model: nn.Module,
    score: Score,
    images: Tensor,
    scores: Tensor,
    shares: Tensor,
    statistics: Statistics,
) -> Tensor:
    opened = (shares > 0).nonzero().flatten()
    start = images.detach()[opened]
    (slope,) = torch.autograd.grad(scores[opened].sum(), images, retain_graph=True)
    slope = slope[opened]
    norms = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
    moved = start + step * slope / norms.view(-1, 1, 1, 1)
    before = scores[opened]
    with fixed_statistics(statistics):
        if torch.is_autocast_enabled(images.device.type):
            # A difference of scores rounded to bf16 would be noise: both are computed again in full precision.
            with torch.autocast(images.device.type, enabled=False):
                both = score(model(torch.cat([start, moved])))
            before, after = both.chunk(2)
        else:
            after = score(model(moved))
    return (shares[opened] * (after - before) / step).sum()


def gate_shares(scores: Tensor, count_in: int, margins: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """What each sample's gradient norm counts in L_∇ (N+M,): 1/N or 1/M where its gate is open, 0 where it is closed.

    The first `count_in` scores are those of ID images, open at S ≤ m_in; the others are outliers', open at S ≥ m_out.
    """
    margin_in, margin_out = margins
    inside, outside = scores[:count_in], scores[count_in:]
    return torch.cat(
        [
            (inside <= margin_in).to(scores.dtype) / max(len(inside), 1),
            (outside >= margin_out).to(scores.dtype) / max(len(outside), 1),
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
    norms: Tensor = torch.linalg.vector_norm(at_least_float32(slope), dim=(1, 2, 3))
    return norms


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they are that already."""
    return values if values.dtype == torch.float64 else values.float()
