"""Outliers nearest to a boundary that is drawn from its posterior (POEM)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from certood.errors import CertoodError
from certood.train.samplers.base import Sampler, directions, finite


class Posterior(NamedTuple):
    """The normal posterior of weights (F,): its mean, and the lower Cholesky factor (F, F) of its precision."""

    mean: Tensor
    precision_factor: Tensor

    def draw(self, generator: torch.Generator) -> Tensor:
        """Weights (F,) from it: with Λ = L·Lᵀ and z standard normal, μ + L⁻ᵀ·z has the covariance Λ⁻¹."""
        noise = torch.randn(len(self.mean), 1, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        moved: Tensor = torch.linalg.solve_triangular(self.precision_factor.mT, noise, upper=True)
        return self.mean + moved[:, 0]


def posterior(points: Tensor, targets: Tensor, *, noise: float, prior: float) -> Posterior:
    """Of the weights w in targets (n,) = points (n, F)·w + ε, with ε ~ N(0, noise²) and w ~ N(0, prior²·I) beforehand.

    Λ = XᵀX/noise² + I/prior² and μ = Λ⁻¹·Xᵀy/noise² (Bishop 2006, eq. 3.53 and 3.54).
    """
    precision = points.mT @ points / noise**2
    precision.diagonal().add_(prior**-2)
    factor = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve((points.mT @ targets / noise**2)[:, None], factor)[:, 0]
    return Posterior(mean, factor)


@dataclass(frozen=True)
class PosteriorSampler(Sampler):
    """POEM (Ming, Fan and Li, ICML 2022): the `count` candidates nearest to a boundary between ID images and outliers.

    A linear function of the penultimate features, scaled to length 1, with an offset, is to be −logit for ID images and +logit
    for candidates. The posterior of its weights has a closed form; one draw of it (Thompson sampling) is the boundary of this
    step, and the candidates for which the drawn function is nearest to 0 are picked. POEM keeps a queue of the features of past
    steps; here the posterior is of this step's images alone, so that a run resumes exactly, and is wider.
    """

    logit: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="Target of outliers, of ID images less it: log odds of 0.99."),
    ] = 4.6
    noise: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="Standard deviation of the targets' noise.")
    ] = 1.0
    prior: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="Standard deviation of the weights before anything is seen."),
    ] = 10.0

    needs_scores: ClassVar[bool] = True
    needs_id_features: ClassVar[bool] = True

    def __call__(
        self,
        scores: Tensor,
        features: Tensor | None,
        count: int,
        generator: torch.Generator,
        id_features: Tensor | None = None,
    ) -> Tensor:
        """Indices of the picked candidates, nearest first."""
        finite(scores)
        if id_features is None:
            raise CertoodError("this sampler compares candidates with ID images by their features; none were given")
        inside, outside = (_with_offset(part) for part in (id_features, features))
        points = torch.cat([inside, outside])
        if not points.isfinite().all():
            raise CertoodError("the features of ID images or candidates are not finite; the network has diverged")
        targets = torch.full_like(points[:, 0], self.logit)
        targets[: len(inside)] = -self.logit
        weights = posterior(points, targets, noise=self.noise, prior=self.prior).draw(generator)
        return (outside @ weights).abs().topk(min(count, len(outside)), largest=False).indices


def _with_offset(features: Tensor | None) -> Tensor:
    """Features (n, F) of length 1 and a constant (n, F + 1); Apple's GPUs have no float64."""
    found = directions(features)
    return F.pad(found.float() if found.device.type == "mps" else found.double(), (0, 1), value=1.0)
