"""Branch and bound: where one linear bound does not decide, the ball is split at the kinks of piecewise linear activations.

β-CROWN (Wang et al., NeurIPS 2021, arXiv 2103.06624), which splits ReLUs by sign. On the part of the ball where
σ·(z − k) ≥ 0 for an input z of an activation with a kink at k and a sign σ, the activation has a kink less, and for every β ≥ 0
subtracting β·σ·(z − k) from a function leaves a lower bound of it there. Slopes and multipliers β are found by gradient ascent;
the part with the lowest bound is split next, at the kink that costs its bound most.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.bounds.ball import LpBall, or_infinite
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.analysis import Analysis
from certood.analysis.bounds.linear.choices import Choices
from certood.analysis.bounds.linear.nodes import NodeBounds
from certood.analysis.bounds.operations.relaxations import crown_slope

LEARNING_RATE = 0.1

# The function that is bounded from below, for any parameters (D, K): rows (D, K) of the logits and constants (D,).
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
# A kink: the node of its activation, and where it lies.
Kink = tuple[int, float]


@dataclass(frozen=True)
class Branching:
    """The effort for an image: at most so many parts, so many of them at once, so many steps of ascent each."""

    parts: int = 256
    batch: int = 32
    steps: int = 12


def branched_least(
    analysis: Analysis, objective: Objective, start: Tensor, shift: Tensor, effort: Branching | None = None
) -> Tensor:
    """Lower bounds (N,) over the ball of objective(start) + shift; an image is left as soon as its bound is above 0.

    `start` is (N, P), the parameters with which the ascent begins; `shift` is (N,). The bound of what is left undecided is
    the lowest of its parts. Networks gain as far as their activations are piecewise linear; without any the bound of the whole
    ball is kept.
    """
    assert isinstance(analysis.ball, LpBall)
    effort = effort or Branching()
    return torch.stack(
        [_one_image(analysis, index, objective, start[index], shift[index], effort) for index in range(len(start))]
    )


@dataclass
class _Parts:
    """Parts of the ball of one image: on which side of every kink, −1, 0 for both or 1 (D, *shape), a lower bound (D,) on each
    part, and what every kink costs it."""

    signs: dict[Kink, Tensor]
    bounds: Tensor
    costs: dict[Kink, Tensor]

    def chosen(self, places: Tensor) -> "_Parts":
        return _Parts(
            {kink: signs[places] for kink, signs in self.signs.items()},
            self.bounds[places],
            {kink: costs[places] for kink, costs in self.costs.items()},
        )

    def joined(self, other: "_Parts") -> "_Parts":
        return _Parts(
            {kink: torch.cat([signs, other.signs[kink]]) for kink, signs in self.signs.items()},
            torch.cat([self.bounds, other.bounds]),
            {kink: torch.cat([costs, other.costs[kink]]) for kink, costs in self.costs.items()},
        )


def _one_image(
    analysis: Analysis, index: int, objective: Objective, start: Tensor, shift: Tensor, effort: Branching
) -> Tensor:
    graph = analysis.graph
    device = analysis.references[0].device
    root = {kink: torch.zeros(1, *graph.nodes[kink[0]].shape, dtype=torch.int8, device=device) for kink in kinks(graph)}
    waiting = _bounded(analysis, index, root, objective, start, shift, effort.steps)
    made = 1
    while bool((waiting.bounds <= 0).any()) and made < effort.parts:
        order = waiting.bounds.argsort()
        most = min(effort.batch, (effort.parts - made + 1) // 2)
        worst, rest = waiting.chosen(order[:most]), waiting.chosen(order[most:])
        children = _split(worst)
        if children is None:
            break
        found = _bounded(analysis, index, children, objective, start, shift, effort.steps)
        # A part of a part has no lower bound than the whole.
        found.bounds = torch.maximum(found.bounds, worst.bounds.repeat(2))
        made += len(found.bounds)
        open_ones = found.chosen((found.bounds <= 0).nonzero().flatten())
        waiting = rest.joined(open_ones)
        if not len(waiting.bounds):
            return found.bounds.min()
    return waiting.bounds.min()


def kinks(graph: Graph) -> list[Kink]:
    """The kinks of the piecewise linear activations of a graph."""
    return [(index, place) for index, node in enumerate(graph.nodes) for place in node.operation.kinks or ()]


def _split(parts: _Parts) -> dict[Kink, Tensor] | None:
    """The signs of both halves of every part, at its costliest kink; None where no kink is left to split at."""
    kinks = list(parts.signs)
    if not kinks:
        return None
    costs = torch.cat([parts.costs[kink].flatten(1) for kink in kinks], 1)
    value, place = costs.max(1)
    if not bool((value > 0).all()):
        return None
    flat = torch.cat([parts.signs[kink].flatten(1) for kink in kinks], 1)
    halves = [flat.clone().scatter_(1, place[:, None], sign) for sign in (1, -1)]
    sizes = [parts.signs[kink][0].numel() for kink in kinks]
    both = torch.cat(halves).split(sizes, 1)
    return {kink: part.view(-1, *parts.signs[kink].shape[1:]) for kink, part in zip(kinks, both, strict=True)}


def _bounded(
    analysis: Analysis,
    index: int,
    signs: dict[Kink, Tensor],
    objective: Objective,
    start: Tensor,
    shift: Tensor,
    steps: int,
) -> _Parts:
    """Bounds on parts of the ball of an image, by ascent on slopes, multipliers and the parameters of the objective."""
    count = len(next(iter(signs.values()))) if signs else 1
    part = _restricted(analysis, index, signs, count)
    graph = analysis.graph
    last = len(graph.nodes) - 1
    slopes: dict[int, Tensor] = {}
    for node, own in enumerate(graph.nodes):
        if own.operation.adjustable:
            slopes[node] = crown_slope(*part.boxes[own.inputs[0]])[:, None].clone().requires_grad_()
    multipliers = {
        kink: torch.zeros_like(sign[:, None], dtype=torch.float64).requires_grad_()
        for kink, sign in signs.items()
        if sign.any()
    }
    parameters = start.expand(count, -1).clone().requires_grad_()
    values = [parameters, *slopes.values(), *multipliers.values()]
    optimiser = torch.optim.Adam(values, LEARNING_RATE)
    best = torch.full((count,), -torch.inf, dtype=torch.float64, device=start.device)
    reached: dict[int, Tensor] = {}
    for step in range(steps + 1):
        with torch.enable_grad():
            rows, constant = objective(parameters)
            subtracted: dict[int, list[tuple[Tensor, float]]] = {}
            for kink, value in multipliers.items():
                node, place = kink
                subtracted.setdefault(node, []).append((signs[kink].to(torch.float64)[:, None] * value, place))
            choices = Choices(dict(slopes), subtracted, reached)
            linear = part.linear_lower(last, rows[:, None], choices)
            found = (part.ball.least(linear.rows) + linear.constant)[:, 0] + constant + shift
        best = torch.maximum(best, or_infinite(found.detach(), -1))
        # A network and an objective may leave nothing to ascend.
        if step == steps or not found.requires_grad or bool((best > 0).all()):
            break
        optimiser.zero_grad()
        (-found.sum()).backward()
        optimiser.step()
        with torch.no_grad():
            for value in slopes.values():
                value.clamp_(0, 1)
            for value in multipliers.values():
                value.clamp_min_(0)
    costs = {kink: _cost(part, kink, reached[kink[0]][:, 0]) * (sign == 0) for kink, sign in signs.items()}
    return _Parts(signs, best, costs)


def _cost(part: Analysis, kink: Kink, rows: Tensor) -> Tensor:
    """What the relaxation at a kink may cost: how far it lies from the chord of its box, times its coefficient."""
    index, place = kink
    node = part.graph.nodes[index]
    lower, upper = part.boxes[node.inputs[0]]
    apart = (lower < place) & (upper > place)
    left, right, here = (node.operation.forward([at]) for at in (lower, upper, torch.full_like(lower, place)))
    chord = left + (right - left) * (place - lower) / torch.where(apart, upper - lower, 1.0)
    return torch.where(apart, rows.abs() * (chord - here).abs(), 0.0)


def _restricted(analysis: Analysis, index: int, signs: dict[Kink, Tensor], count: int) -> Analysis:
    """The analysis of one image, once for every part, with the boxes of inputs of activations cut off at kinks."""
    ball = analysis.ball
    assert isinstance(ball, LpBall)
    own = LpBall(ball.centre[index].expand(count, -1, -1, -1), ball.eps[index].expand(count), ball.norm)
    boxes = {
        node: (lower[index].expand(count, *lower.shape[1:]), upper[index].expand(count, *upper.shape[1:]))
        for node, (lower, upper) in analysis.boxes.items()
    }
    for (node, place), sign in signs.items():
        source = analysis.graph.nodes[node].inputs[0]
        low, high = boxes[source]
        low = torch.where(sign > 0, low.clamp_min(place), low)
        boxes[source] = (low, torch.where(sign < 0, high.clamp_max(place), high))
    values = {node: value[index].expand(count, *value.shape[1:]) for node, value in analysis.references.items()}
    # A part is no wider than the whole.
    widths = {node: width[index].expand(count, *width.shape[1:]) for node, width in analysis.nodes.widths.items()}
    return Analysis(NodeBounds(analysis.graph, own, values, boxes, widths), "crown", analysis.max_memory)
