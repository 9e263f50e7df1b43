"""Attacks on an OOD score inside a ball: projected gradient ascent, for l1 Frank–Wolfe.

Madry et al., ICLR 2018 (arXiv 1706.06083); steps that shrink and go on from the best point, as in APGD (Croce & Hein, ICML 2020,
arXiv 2003.01690). What is found here bounds from one side only; that nothing is found proves nothing.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Values = Callable[[Tensor], Tensor]


def generators(seed: int, indices: Sequence[int], stream: int = 0) -> list[torch.Generator]:
    """A random generator for every image, that does not depend on the other images of a batch; other numbers in every stream.

    They are those of the CPU, so that numbers are the same on every device.
    """
    start = seed * 1_000_003 + stream * 2**40
    return [torch.Generator().manual_seed((start + int(index)) % 2**63) for index in indices]


def project(step: Tensor, eps: Tensor, norm: float) -> Tensor:
    """The nearest point of B_p(0, ε) to each step (N, C, H, W), for ε (N,)."""
    flat, radius = step.flatten(1), eps[:, None]
    if norm == math.inf:
        inside = flat.clamp(-radius, radius)
    elif norm == 2:
        inside = flat * (radius / flat.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1)
    else:
        # Duchi et al., ICML 2008: soft thresholding at the level at which the l1 norm is ε.
        ordered = flat.abs().sort(dim=1, descending=True).values
        excess = ordered.cumsum(1) - radius
        counts = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=flat.device)
        last = ((ordered - excess / counts > 0).sum(1, keepdim=True) - 1).clamp_min(0)
        level = (excess.gather(1, last) / (last + 1)).clamp_min(0)
        inside = flat.sign() * (flat.abs() - level).clamp_min(0)
    return inside.view_as(step)


def distances(first: Tensor, second: Tensor, norm: float) -> Tensor:
    """‖first − second‖_p (N,) of images (N, C, H, W), in pixels."""
    found: Tensor = torch.linalg.vector_norm((first - second).flatten(1), norm, dim=1)
    return found


def steepest_step(slope: Tensor, norm: float, spread: float = 0.05) -> Tensor:
    """A step of norm one along which a linear function rises most; for l1 evenly over the steepest `spread` of the pixels."""
    flat = slope.flatten(1)
    if norm == math.inf:
        step = flat.sign()
    elif norm == 2:
        step = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-300)
    else:
        count = max(1, int(spread * flat.shape[1]))
        top = flat.abs().topk(count, dim=1).indices
        step = torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign() / count)
    return step.view_as(slope)


def random_start(images: Tensor, eps: Tensor, norm: float, random: Sequence[torch.Generator]) -> Tensor:
    """A random point of every ball, clipped to the pixel range; one generator per image."""
    shape, dtype, device = images.shape[1:], images.dtype, images.device
    noise = torch.stack([torch.randn(shape, generator=one, dtype=dtype, device="cpu") for one in random]).to(device)
    if norm == math.inf:
        noise = noise.sign()
    scale = torch.stack([torch.rand((), generator=one, dtype=dtype, device="cpu") for one in random]).to(device) * eps
    size = torch.linalg.vector_norm(noise.flatten(1), norm, dim=1).clamp_min(1e-12)
    moved: Tensor = images + noise * (scale / size).view(-1, 1, 1, 1)
    return moved.clamp(0, 1)


def sparse_corner(slope: Tensor, images: Tensor, eps: Tensor) -> Tensor:
    """The step (N, C, H, W) along which a linear function rises most in the clipped l1 ball: steepest pixels to their ends."""
    flat, points = slope.flatten(1), images.flatten(1)
    room = torch.where(flat > 0, 1 - points, points)
    order = flat.abs().argsort(1, descending=True)
    space = room.gather(1, order)
    moved = torch.minimum((eps[:, None] - (space.cumsum(1) - space)).clamp_min(0), space)
    return (flat.sign() * torch.zeros_like(room).scatter(1, order, moved)).view_as(images)


def inside(points: Tensor, images: Tensor, eps: Tensor, norm: float) -> Tensor:
    """Points moved into B_p(x, ε) ∩ [0, 1]^d around each image; where the pixel range clips, not always the nearest."""
    return (images + project(points - images, eps, norm)).clamp(0, 1)


def ascend(
    values: Values,
    images: Tensor,
    eps: Tensor,
    norm: float,
    *,
    random: Sequence[torch.Generator],
    steps: int = 20,
    restarts: int = 1,
    starts: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Largest values (N,) found in the balls, and where (N, C, H, W): images in [0, 1], ε (N,) in pixels.

    Begins at the images themselves, at `starts` moved into the balls, and at random points, `restarts` times in all; for
    the random points there is one generator per image. A start from which nothing begins counts as it is. Points stay in
    B_p(x, ε) ∩ [0, 1]^d.
    """
    with torch.no_grad():
        best = values(images)
    where = images.clone()
    begins = [images, *(inside(start, images, eps, norm) for start in starts)]
    for restart in range(max(restarts, len(begins))):
        begin = begins[restart] if restart < len(begins) else random_start(images, eps, norm, random)
        value, point = _climb(values, images, begin, eps, norm, steps if restart < restarts else 0)
        better = value > best
        best = torch.where(better, value, best)
        where = torch.where(better.view(-1, 1, 1, 1), point, where)
    return best, where


def _climb(
    values: Values, images: Tensor, begin: Tensor, eps: Tensor, norm: float, steps: int
) -> tuple[Tensor, Tensor]:
    """One run: the largest values found, and where.

    For l1 by Frank–Wolfe steps towards corners of the clipped ball; otherwise by projected steps, which shrink twice and
    then go on from the best point.
    """
    point, best, where = begin.clone(), torch.full_like(eps, -math.inf), begin.clone()
    slope_there = torch.zeros_like(begin)
    length = eps / 2 if steps > 1 else eps
    for step in range(steps + 1):
        point.requires_grad_()
        value = values(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
        point, value = point.detach(), value.detach()
        better = value > best
        here = better.view(-1, 1, 1, 1)
        best, where = torch.where(better, value, best), torch.where(here, point, where)
        slope_there = torch.where(here, slope, slope_there)
        if step == steps:
            break
        if norm == 1:
            point = point + 2 / (step + 2) * (images + sparse_corner(slope, images, eps) - point)
            continue
        if step in (steps // 3, 2 * steps // 3):
            length, point, slope = length / 3, where, slope_there
        point = inside(point + length.view(-1, 1, 1, 1) * steepest_step(slope, norm), images, eps, norm)
    return best, where
