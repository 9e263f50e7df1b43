"""CLEVER, an estimate of the local Lipschitz constant from sampled gradients. It certifies nothing.

Weng et al., ICLR 2018 (arXiv 1801.10578): maxima of batches of gradient norms follow a reverse Weibull distribution where the
norms are bounded, and its end is the constant.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# So many maxima, each of so many points.
BATCHES = 32
BATCH = 4
# How far above the largest maximum the end is looked for, in units of the spread of the maxima.
NEAREST, FARTHEST, ENDS = 1e-4, 10.0, 96


def uniform_points(images: Tensor, eps: Tensor, norm: float, random: Sequence[torch.Generator]) -> Tensor:
    """A point of every ball B_p(x, ε), drawn uniformly and clipped to the pixel range; one generator per image."""
    count, dtype = images[0].numel(), images.dtype
    steps = torch.stack([_uniform(count, norm, one, dtype) for one in random]).to(images.device).view_as(images)
    moved: Tensor = images + eps.view(-1, 1, 1, 1) * steps
    return moved.clamp(0, 1)


def _uniform(count: int, norm: float, random: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A point (count,) of the unit ball of a norm, on the CPU, whose random numbers are the same everywhere."""
    cpu = random.device
    if norm == math.inf:
        return 2 * torch.rand(count, generator=random, dtype=dtype, device=cpu) - 1
    if norm == 2:
        direction = torch.randn(count, generator=random, dtype=dtype, device=cpu)
        size = torch.rand((), generator=random, dtype=dtype, device=cpu) ** (1 / count)
        found: Tensor = direction / direction.norm() * size
        return found
    sizes = torch.empty(count + 1, dtype=dtype, device=cpu).exponential_(generator=random)
    signs = torch.randint(2, (count,), generator=random, device=cpu) * 2 - 1
    return signs * sizes[:-1] / sizes.sum()


def clever(maxima: Tensor) -> Tensor:
    """CLEVER's estimate (N,) of the local Lipschitz constant from maxima (B, N) of batches of gradient norms.

    The end of the reverse Weibull distribution of the largest likelihood, among shapes of at least 1: below, the likelihood
    grows without bound towards the largest maximum. Where the maxima are alike it is the largest; where they show no end, the
    likelihood still growing ten times their spread above the largest, it is not a number.
    """
    largest = maxima.amax(0)
    spread = largest - maxima.amin(0)
    alike = spread <= 1e-9 * largest
    ends = torch.logspace(math.log10(NEAREST), math.log10(FARTHEST), ENDS, dtype=maxima.dtype, device=maxima.device)
    # Distances from every candidate end to every maximum, in units of the spread: (B, ENDS, N).
    distances = ((largest - maxima) / torch.where(alike, 1.0, spread))[:, None] + ends[:, None]
    best = _likelihood(distances).argmax(0)
    return torch.where(alike, largest, torch.where(best == ENDS - 1, math.nan, largest + spread * ends[best]))


def _likelihood(distances: Tensor) -> Tensor:
    """The largest mean log-likelihood (…) of Weibull distributions with a shape of at least 1, for samples (B, …)."""
    logs = distances.log()
    longest = logs.amax(0)
    logs = logs - longest
    mean = logs.mean(0)
    low, high = torch.zeros_like(mean), torch.full_like(mean, math.log(1e4))
    for _ in range(40):
        middle = (low + high) / 2
        powers = (middle.exp() * logs).exp()
        below = (powers * logs).sum(0) / powers.sum(0) - 1 / middle.exp() < mean
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    shape = low.exp()
    # The scale of the largest likelihood has scale^shape = the mean of the samples to that power.
    return shape.log() - (shape * logs).exp().mean(0).log() + (shape - 1) * mean - longest
