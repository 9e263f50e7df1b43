"""Attacks on an OOD score: projected gradient steps inside a ball, and the smallest distance at which a decision changes.

Madry et al., ICLR 2018 (arXiv 1706.06083); shrinking steps from the best point, as in APGD (Croce & Hein, ICML 2020,
arXiv 2003.01690). What is found here is an upper bound of the true radius; that nothing is found proves nothing.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from certood.analysis.radii import Question, largest_radius

Values = Callable[[Tensor], Tensor]


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
        counts = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype)
        last = ((ordered - excess / counts > 0).sum(1, keepdim=True) - 1).clamp_min(0)
        level = (excess.gather(1, last) / (last + 1)).clamp_min(0)
        inside = flat.sign() * (flat.abs() - level).clamp_min(0)
    return inside.view_as(step)


def distances(first: Tensor, second: Tensor, norm: float) -> Tensor:
    """‖first − second‖_p (N,) of images (N, C, H, W), in pixels."""
    found: Tensor = torch.linalg.vector_norm((first - second).flatten(1), norm, dim=1)
    return found


def steepest_step(slope: Tensor, norm: float, spread: float = 0.05) -> Tensor:
    """A step of norm one along which the linear function rises most; for l1 over the largest `spread` of the pixels."""
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


def random_start(images: Tensor, eps: Tensor, norm: float, generator: torch.Generator) -> Tensor:
    """A random point of every ball, clipped to the pixel range."""
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    if norm == math.inf:
        noise = noise.sign()
    scale = torch.rand(len(images), generator=generator, dtype=images.dtype) * eps
    size = torch.linalg.vector_norm(noise.flatten(1), norm, dim=1).clamp_min(1e-12)
    moved: Tensor = images + noise * (scale / size).view(-1, 1, 1, 1)
    return moved.clamp(0, 1)


def ascend(
    values: Values,
    images: Tensor,
    eps: Tensor,
    norm: float,
    *,
    steps: int = 20,
    restarts: int = 1,
    generator: torch.Generator,
    enough: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Largest values (N,) found in the balls, and where (N, C, H, W); starts at the image itself, then at random points.

    Stops as soon as every value exceeds `enough`. Points stay in B_p(x, ε) ∩ [0, 1]^d.
    """
    with torch.no_grad():
        best = values(images)
    where = images.clone()
    for restart in range(restarts):
        point = images.clone() if restart == 0 else random_start(images, eps, norm, generator)
        length = eps / 2 if steps > 1 else eps
        for step in range(steps + 1):
            point.requires_grad_()
            value = values(point)
            (slope,) = torch.autograd.grad(value.sum(), point)
            with torch.no_grad():
                better = value > best
                best = torch.where(better, value, best)
                where = torch.where(better.view(-1, 1, 1, 1), point, where)
                if step in (steps // 3, 2 * steps // 3):
                    length = length / 3
                    point = where.clone()
                    continue
                moved = point + length.view(-1, 1, 1, 1) * steepest_step(slope, norm)
                point = (images + project(moved - images, eps, norm)).clamp(0, 1)
        if enough is not None and bool((best > enough).all()):
            break
    return best.detach(), where.detach()


def attack_radii(
    question: Question,
    images: Tensor,
    accepted: Tensor,
    certified: Tensor,
    *,
    steps: int = 30,
    restarts: int = 2,
    probes: int = 8,
    seed: int = 0,
) -> Tensor:
    """Smallest distances (N,) at which a changed decision was found, infinite where none was; `certified` is where to start.

    Ball sizes are searched by bisection between the certified radius and the first success; every success is then drawn
    towards the image along the segment as far as it stays one. A distance below the certified radius is a violation of
    soundness, so that the first probe looks inside the certified ball.
    """
    signs = torch.where(accepted, 1.0, -1.0).double()
    generator = torch.Generator().manual_seed(seed)
    limit = largest_radius(question.norm, images[0].numel())
    found = torch.full((len(images),), math.inf, dtype=torch.float64)
    point = images.clone().requires_grad_()
    scores = question.scores(point)
    (slope,) = torch.autograd.grad(scores.sum(), point)
    dual = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}[float(question.norm)]
    linear = (question.threshold - scores).abs().detach() / slope.flatten(1).norm(dual, dim=1).clamp_min(1e-12)

    def attempt(chosen: Tensor, eps: Tensor) -> None:
        own = signs[chosen]

        def margins(candidates: Tensor) -> Tensor:
            return own * (question.scores(candidates) - question.threshold)

        _, where = ascend(
            margins, images[chosen], eps, question.norm, steps=steps, restarts=restarts, generator=generator, enough=0.0
        )
        with torch.no_grad():
            changed = (question.scores(where) <= question.threshold) != accepted[chosen]
            part, success = chosen[changed], where[changed]
            if len(part):
                drawn = _drawn(question, images[part], success, accepted[part])
                found[part] = torch.minimum(found[part], distances(drawn, images[part], question.norm))

    low = certified.to(torch.float64).clone()
    inside = (low > 0).nonzero().flatten()
    if len(inside):
        attempt(inside, low[inside])
    eps = torch.maximum(low * 1.05, linear).clamp(1e-9, limit)
    for _ in range(probes):
        waiting = found.isinf().nonzero().flatten()
        if not len(waiting):
            break
        attempt(waiting, eps[waiting])
        missed = waiting[found[waiting].isinf()]
        low[missed] = torch.maximum(low[missed], eps[missed])
        if bool((eps[missed] >= limit).all()):
            break
        eps[missed] = (1.5 * eps[missed]).clamp_max(limit)
    for _ in range(probes):
        open_ones = (found.isfinite() & (found > low * 1.02)).nonzero().flatten()
        if not len(open_ones):
            break
        middle = (low + found)[open_ones] / 2
        before = found[open_ones].clone()
        attempt(open_ones, middle)
        missed = open_ones[found[open_ones] >= before]
        low[missed] = torch.maximum(low[missed], (low + found)[missed] / 2)
    return found


def _drawn(question: Question, images: Tensor, changed: Tensor, accepted: Tensor) -> Tensor:
    """The points nearest to the images, on the segments from them, at which the decision is still the changed one."""
    near, far = torch.zeros(len(images), dtype=torch.float64), torch.ones(len(images), dtype=torch.float64)
    for _ in range(12):
        middle = (near + far) / 2
        point = images + middle.view(-1, 1, 1, 1) * (changed - images)
        success = (question.scores(point) <= question.threshold) != accepted
        near, far = torch.where(success, near, middle), torch.where(success, middle, far)
    return images + far.view(-1, 1, 1, 1) * (changed - images)
