"""The smallest distance at which a decision changes: an upper bound of the true radius.

Walks along the decision boundary as in FAB (Croce & Hein, ICML 2020, arXiv 1907.02044): the margin is linearised, the point goes
to the nearest one at which the linear function vanishes, with a pull towards the image; a point that has crossed is drawn
back. Unlike attacks in balls of given sizes it needs no search over sizes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.evidence.attacks import ascend, distances, random_start
from certood.analysis.evidence.direct import largest_radius
from certood.analysis.evidence.estimates import gradient_norms
from certood.analysis.question import Question

# FAB's own constants: how far beyond the linearised boundary, how strong a pull, how far back after crossing.
BEYOND, PULL, BACK = 1.05, 0.1, 0.9
# Rejected images are also driven to be accepted as one class, for this many of the most probable classes.
TARGETS = 5
# An attack so near to the certified radius leaves nothing to be found.
NEAR = 1.005
# Attacks inside the distance found, in balls smaller by this factor, at most so often.
UNDERCUT, ROUNDS = 0.99, 6
BISECTIONS = 14


def attack_radii(
    question: Question,
    images: Tensor,
    accepted: Tensor,
    certified: Tensor,
    *,
    random: Sequence[torch.Generator],
    steps: int = 30,
    restarts: int = 2,
) -> tuple[Tensor, Tensor]:
    """Smallest distances (N,) in pixels at which a changed decision was found, infinite where none was; and those points.

    `accepted` (N,) are the decisions of images (N, C, H, W), `certified` (N,) their certified radii. The search starts inside
    the certified ball, where a success means that the certificate is not sound, and goes outwards from there, from
    random points and towards single classes. `random` has one generator per image. Images to which nothing remains to be
    found leave early.
    """
    radii = torch.full((len(images),), math.inf, dtype=torch.float64, device=images.device)
    points = images.clone()
    for decision in (True, False):
        members = (accepted == decision).nonzero().flatten()
        if len(members):
            chosen = [random[int(member)] for member in members]
            boundary = _Boundary(question, images[members], decision)
            radii[members], points[members] = boundary.nearest(certified[members].double(), chosen, steps, restarts)
    return radii, points


def nearer(
    question: Question, images: Tensor, accepted: Tensor, radii: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """Of points (N, C, H, W) at finite distances `radii` (N,), all with a changed decision, those drawn towards the images.

    Returns their distances (N,) and the points on the segments from the images at which the decision is still changed.
    """
    radii, points = radii.clone(), points.clone()
    for decision in (True, False):
        members = (accepted == decision).nonzero().flatten()
        if len(members):
            boundary = _Boundary(question, images[members], decision)
            radii[members], points[members] = boundary.drawn(radii[members], points[members])
    return radii, points


def changed_margins(question: Question, accepted: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of points (N, C, H, W), above 0 where the decision is not `accepted` (N,), that about the image of the point."""
    sign = torch.where(accepted, 1.0, -1.0).to(torch.float64)
    return lambda points: sign * (question.scores(points) - question.threshold)


@dataclass
class _Walkers:
    """Points (M, D) on their way, several an image: whose they are, the class they aim at or −1, the best so far."""

    image: Tensor
    aim: Tensor
    point: Tensor
    best: Tensor
    where: Tensor

    def chosen(self, kept: Tensor) -> "_Walkers":
        return _Walkers(self.image[kept], self.aim[kept], self.point[kept], self.best[kept], self.where[kept])


@dataclass(frozen=True)
class _Boundary:
    """Where the decisions of images (N, C, H, W), all accepted or all rejected, change."""

    question: Question
    images: Tensor
    accepted: bool

    def margins(self, points: Tensor) -> Tensor:
        """Above 0 (M,) where the decision about a point (M, C, H, W) is the other one."""
        return (1.0 if self.accepted else -1.0) * (self.question.scores(points) - self.question.threshold)

    def nearest(
        self, certified: Tensor, random: Sequence[torch.Generator], steps: int, restarts: int
    ) -> tuple[Tensor, Tensor]:
        """Radii (N,), and points at that distance."""
        images, norm = self.images, self.question.norm
        _, probe = ascend(self.margins, images, certified, norm, steps=max(4, steps // 3), random=random)
        outer = torch.maximum(2 * certified, self._first_order()).clamp_max(largest_radius(norm, images[0].numel()))
        starts = [probe] + [random_start(images, outer, norm, random) for _ in range(restarts - 1)]
        device = images.device
        aims = [torch.full((len(images),), -1, device=device)] * len(starts)
        for classes in self._probable():
            starts, aims = [*starts, images], [*aims, classes]
        points = torch.cat(starts).flatten(1)
        rows = torch.arange(len(images), device=device).repeat(len(starts))
        nothing = torch.full((len(points),), math.inf, dtype=torch.float64, device=device)
        walkers = _Walkers(rows, torch.cat(aims), points, nothing, points.clone())
        # A third of the way towards single classes; then the better half of each image's walkers goes on.
        self._walk(walkers, steps // 3, aiming=True)
        self._walk(walkers, steps // 3)
        best = walkers.best.view(len(starts), -1)
        rank = best.argsort(dim=0, stable=True).argsort(dim=0)
        going = (rank < (len(starts) + 1) // 2) & (best.amin(0) > NEAR * certified)
        last = walkers.chosen(going.flatten())
        self._walk(last, steps - 2 * (steps // 3))
        walkers.best[going.flatten()], walkers.where[going.flatten()] = last.best, last.where
        radii, place = walkers.best.view(len(starts), -1).min(0)
        found = walkers.where.view(len(starts), *images.shape)[place, torch.arange(len(images), device=device)]
        return self._undercut(*self.drawn(radii, found), certified, random, steps)

    def _first_order(self) -> Tensor:
        """Margin over gradient norm (N,): about where the boundary is."""
        with torch.no_grad():
            margins = self.margins(self.images).abs()
        return margins / gradient_norms(self.question, self.images).clamp_min(1e-12)

    def _probable(self) -> list[Tensor]:
        """The most probable classes of rejected images, each (N,); none for scores that no single class decides."""
        if self.accepted:
            return []
        with torch.no_grad():
            values = self.question.class_scores(self.images)
        if values is None:
            return []
        return list(values.topk(min(TARGETS, values.shape[1]), dim=1, largest=False).indices.T)

    def _towards(self, points: Tensor, classes: Tensor) -> Tensor:
        """Above 0 where a point is accepted already by what it has of one class."""
        values = self.question.class_scores(points)
        assert values is not None, "only scores that a single class decides have classes to aim at"
        return self.question.threshold - values.gather(1, classes[:, None])[:, 0]

    def _walk(self, walkers: _Walkers, steps: int, *, aiming: bool = False) -> None:
        """Move walkers by `steps` steps, and keep their best points."""
        if not len(walkers.image):
            return
        norm, shape = self.question.norm, self.images.shape[1:]
        home = self.images.flatten(1)[walkers.image]
        aimed = (walkers.aim >= 0).nonzero().flatten() if aiming else walkers.aim.new_zeros(0)
        for step in range(steps + 1):
            point = walkers.point.detach()
            images = point.view(-1, *shape).requires_grad_()
            value = self.margins(images)
            goal = value.clone()
            if len(aimed):
                goal[aimed] = self._towards(images[aimed], walkers.aim[aimed])
            slope = torch.autograd.grad(goal.sum(), images)[0].flatten(1)
            point, value, goal = point.detach(), value.detach(), goal.detach()
            distance = torch.linalg.vector_norm(point - home, norm, dim=1)
            better = (value > 0) & (distance < walkers.best)
            walkers.best = torch.where(better, distance, walkers.best)
            walkers.where = torch.where(better[:, None], point, walkers.where)
            if step < steps:
                walkers.point = _stepped(point, home, slope, goal, value > 0, norm)

    def _undercut(
        self, radii: Tensor, points: Tensor, certified: Tensor, random: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor, Tensor]:
        """Attacks in balls that are a little smaller than the distance found, until they fail."""
        going = (radii.isfinite() & (radii > NEAR * certified)).nonzero().flatten()
        for _ in range(ROUNDS):
            if not len(going):
                break
            part = _Boundary(self.question, self.images[going], self.accepted)
            chosen = [random[int(member)] for member in going]
            value, where = ascend(
                part.margins,
                part.images,
                UNDERCUT * radii[going],
                self.question.norm,
                random=chosen,
                steps=max(4, steps // 3),
                restarts=2,
                starts=[points[going]],
            )
            better = value > 0
            lower, drawn = part.drawn(torch.where(better, radii[going], math.inf), where)
            going = going[better]
            radii[going], points[going] = lower[better], drawn[better]
        return radii, points

    def drawn(self, radii: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """The points nearest to the images, on the segments from them, at which the decision is still the changed one."""
        near, far = torch.zeros_like(radii), torch.ones_like(radii)
        for _ in range(BISECTIONS):
            middle = (near + far) / 2
            with torch.no_grad():
                changed = self.margins(self.images + middle.view(-1, 1, 1, 1) * (points - self.images)) > 0
            near, far = torch.where(changed, near, middle), torch.where(changed, middle, far)
        drawn = self.images + far.view(-1, 1, 1, 1) * (points - self.images)
        found = radii.isfinite()
        radii = torch.where(found, distances(drawn, self.images, self.question.norm), math.inf)
        return radii, torch.where(found.view(-1, 1, 1, 1), drawn, self.images)


def _stepped(point: Tensor, home: Tensor, slope: Tensor, value: Tensor, crossed: Tensor, norm: float) -> Tensor:
    """FAB's next points (M, D), from the linear function that has this value and slope at `point`."""
    start = torch.where(crossed[:, None], home + BACK * (point - home), point)
    here = value + (slope * (start - point)).sum(1)
    there = value + (slope * (home - point)).sum(1)
    side = torch.where(here > 0, -1.0, 1.0)[:, None]
    own = smallest_step(side * slope, here.abs(), start, norm)
    direct = smallest_step(slope, (-there).clamp_min(0), home, norm)
    size, size_direct = (torch.linalg.vector_norm(part, norm, dim=1) for part in (own, direct))
    pull = (size / (size + size_direct).clamp_min(1e-300)).clamp_max(PULL)[:, None]
    moved: Tensor = (1 - pull) * (start + BEYOND * own) + pull * (home + BEYOND * direct)
    return moved.clamp(0, 1)


def smallest_step(slope: Tensor, gain: Tensor, points: Tensor, norm: float) -> Tensor:
    """The smallest steps (N, D) in l_p along which linear functions rise by `gain` (N,) ≥ 0 while points stay in [0, 1].

    Slopes and points are (N, D). Every pixel moves by min(t·w, room), w = 1 (l_inf) or |slope| (l2), with the least t that
    suffices; for l1 the steepest pixels move as far as they can. Where the gain cannot be reached all move to their ends.
    """
    steep = slope.abs()
    room = torch.where(slope > 0, 1 - points, points)
    gain = gain[:, None]
    if norm == 1:
        order = steep.argsort(1, descending=True)
        ordered = steep.gather(1, order)
        space = room.gather(1, order)
        before = (ordered * space).cumsum(1) - ordered * space
        moved = torch.minimum(((gain - before) / ordered.clamp_min(1e-300)).clamp_min(0), space)
        size = torch.zeros_like(room).scatter(1, order, moved)
    else:
        weight = torch.ones_like(steep) if norm == math.inf else steep
        ends = torch.where(steep > 0, room / weight.clamp_min(1e-300), math.inf)
        ordered, order = ends.sort(1)
        full = (steep * room).gather(1, order)
        rate = (steep * weight).gather(1, order)
        level = (gain - (full.cumsum(1) - full)) / rate.flip(1).cumsum(1).flip(1).clamp_min(1e-300)
        enough = level <= ordered
        chosen = level.gather(1, enough.to(torch.int8).argmax(1, keepdim=True)).clamp_min(0)
        chosen = torch.where(enough.any(1, keepdim=True), chosen, math.inf)
        size = torch.minimum(torch.where(weight > 0, chosen * weight, 0.0), room)
    return slope.sign() * torch.where(steep > 0, size, 0.0)
