"""k-means in torch, on the device of the points, all restarts at once, accurate wherever the points lie."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.errors import CertoodError

PAIRS_AT_ONCE = 4096
POINTS_WITH_ALL_PAIRS = 4096


@dataclass(frozen=True)
class KMeansResult:
    """The best restart: labels (n,), centres (k, d), and inertia, the sum of squared distances to the centres."""

    labels: Tensor
    centres: Tensor
    inertia: float


def kmeans(
    points: Tensor, k: int, *, generator: torch.Generator, restarts: int = 3, iterations: int = 100
) -> KMeansResult:
    """Lloyd's algorithm from k-means++ starts (Arthur & Vassilvitskii, 2007); an empty cluster takes the farthest point.

    `points` is (n, d); with fewer points than k there is a cluster a point. The generator lives on the device of the
    points. Raises CertoodError for points that are not finite, or k or restarts below 1.
    """
    if points.ndim != 2 or not len(points) or k < 1 or restarts < 1:
        raise CertoodError(
            f"expected points (n ≥ 1, d), k ≥ 1, restarts ≥ 1; got {tuple(points.shape)}, {k}, {restarts}"
        )
    if not points.isfinite().all():
        broken = int((~points.isfinite()).any(1).sum())
        raise CertoodError(f"{broken} of {len(points)} points are not finite; the network's features have diverged")
    if len(points) <= k:
        return KMeansResult(torch.arange(len(points), device=points.device), points.detach().clone(), 0.0)
    given = points.dtype
    # Apple's GPUs have no float64; there the pairs that need exact differences are more.
    points = points.detach().to(torch.float32 if points.device.type == "mps" else torch.float64)
    origin = points.mean(0)
    points = points - origin
    centres = _spread_start(points, k, restarts, generator)
    labels = torch.full((restarts, len(points)), -1, device=points.device)
    for _ in range(iterations):
        distances = _squared_distances(points, centres)
        nearest = distances.argmin(2)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        centres = _means(points, labels, distances.gather(2, labels[..., None])[..., 0], centres)
    nearest, labels = _squared_distances(points, centres).min(2)
    inertia = nearest.sum(1)
    best = int(inertia.argmin())
    return KMeansResult(labels[best], (centres[best] + origin).to(given), inertia[best].item())


def _squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """(restarts, n, k) of points (n, d) and centres (restarts, k, d), with half of the digits of their type or more.

    The expanded form ‖x‖² − 2x·c + ‖c‖² is one matrix product, but its error is relative to ‖x‖² + ‖c‖²: of two points
    that lie near each other and far from the origin no digit would be left. Such pairs are computed again by differences.
    """
    scale = points.square().sum(1)[None, :, None] + centres.square().sum(2)[:, None, :]
    distances = scale - 2 * torch.matmul(points, centres.transpose(1, 2))
    cancelled = (distances <= math.sqrt(torch.finfo(points.dtype).eps) * scale).nonzero()
    for pairs in cancelled.split(PAIRS_AT_ONCE):
        restart, point, centre = pairs.unbind(1)
        distances[restart, point, centre] = (points[point] - centres[restart, centre]).square().sum(1)
    return distances


def _spread_start(points: Tensor, k: int, restarts: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of 2 + log k points drawn with probability proportional to their squared distance, the best."""
    trials = 2 + int(math.log(k))
    distances_from = _distances_between(points)
    chosen = torch.randint(len(points), (restarts, 1), device=points.device, generator=generator)
    nearest = distances_from(chosen)[:, 0]
    rows = torch.arange(restarts, device=points.device)
    for _ in range(k - 1):
        # Where all points coincide with centres every distance is zero; any point then serves.
        weights = torch.where(nearest.sum(1, keepdim=True) > 0, nearest, torch.ones_like(nearest))
        drawn = torch.multinomial(weights, trials, replacement=True, generator=generator)
        after = torch.minimum(nearest[:, None], distances_from(drawn))
        best = after.sum(2).argmin(1)
        nearest = after[rows, best]
        chosen = torch.cat([chosen, drawn[rows, best][:, None]], 1)
    return points[chosen]


def _distances_between(points: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from indices (restarts, m) to squared distances (restarts, m, n) of those points from all points.

    Up to a few thousand points all pairs are computed at once, which is a single matrix product.
    """
    if len(points) > POINTS_WITH_ALL_PAIRS:
        return lambda indices: _squared_distances(points, points[indices]).transpose(1, 2)
    between = _squared_distances(points, points[None])[0]
    return lambda indices: between[indices]


def _means(points: Tensor, labels: Tensor, distances: Tensor, centres: Tensor) -> Tensor:
    """Means of the clusters; the empty ones of a restart move to its points that are farthest from their centres."""
    restarts, k, width = centres.shape
    flat = (labels + k * torch.arange(restarts, device=labels.device)[:, None]).flatten()
    counts = torch.bincount(flat, minlength=restarts * k).view(restarts, k)
    sums = torch.zeros(restarts * k, width, device=points.device, dtype=points.dtype)
    sums.index_add_(0, flat, points.repeat(restarts, 1))
    means = sums.view(restarts, k, width) / counts.clamp_min(1)[..., None]
    for restart in (counts == 0).any(1).nonzero().flatten().tolist():
        empty = (counts[restart] == 0).nonzero().flatten()
        means[restart, empty] = points[distances[restart].topk(len(empty)).indices]
    return means
