"""Branch and bound: where one linear bound does not decide, the ball is split by the signs of ReLU inputs.

β-CROWN (Wang et al., NeurIPS 2021, arXiv 2103.06624). On the part of the ball where σ·z ≥ 0 for an input z of a ReLU and a sign
σ, that ReLU is linear, and for every β ≥ 0 subtracting β·σ·z from a function leaves a lower bound of it there. The slopes of the
other ReLUs and the multipliers β are found by gradient ascent; the part with the lowest bound is split next, at the ReLU whose
relaxation costs it most.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.bounds.ball import LpBall, or_infinite
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.choices import Choices
from certood.analysis.bounds.linear.propagation import Analysis
from certood.analysis.bounds.operations.activations import RELU
from certood.analysis.bounds.operations.relaxations import crown_slope

LEARNING_RATE = 0.1

# The function that is bounded from below, for any parameters (D, K): rows (D, K) of the logits and constants (D,).
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


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
    the lowest of its parts. Only networks whose nonlinear operations are ReLUs gain; others keep the bound without parts.
    """
    assert isinstance(analysis.ball, LpBall)
    effort = effort or Branching()
    return torch.stack(
        [_one_image(analysis, index, objective, start[index], shift[index], effort) for index in range(len(start))]
    )


@dataclass
class _Parts:
    """Parts of the ball of one image: for every ReLU input −1, 0 or 1 (D, *shape), and a lower bound (D,) on each part."""

    signs: dict[int, Tensor]
    bounds: Tensor
    costs: dict[int, Tensor]

    def chosen(self, places: Tensor) -> "_Parts":
        return _Parts(
            {node: signs[places] for node, signs in self.signs.items()},
            self.bounds[places],
            {node: costs[places] for node, costs in self.costs.items()},
        )

    def joined(self, other: "_Parts") -> "_Parts":
        return _Parts(
            {node: torch.cat([signs, other.signs[node]]) for node, signs in self.signs.items()},
            torch.cat([self.bounds, other.bounds]),
            {node: torch.cat([costs, other.costs[node]]) for node, costs in self.costs.items()},
        )


def _one_image(
    analysis: Analysis, index: int, objective: Objective, start: Tensor, shift: Tensor, effort: Branching
) -> Tensor:
    graph = analysis.graph
    nodes = sorted(set(_relus(graph).values()))
    root = {node: torch.zeros(1, *graph.nodes[node].shape, dtype=torch.int8) for node in nodes}
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


def _relus(graph: Graph) -> dict[int, int]:
    """The ReLUs of a graph, and what each reads."""
    return {index: node.inputs[0] for index, node in enumerate(graph.nodes) if node.operation is RELU}


def _split(parts: _Parts) -> dict[int, Tensor] | None:
    """The signs of both halves of every part, at its costliest ReLU; None where no ReLU is left to split."""
    nodes = list(parts.signs)
    if not nodes:
        return None
    costs = torch.cat([parts.costs[node].flatten(1) for node in nodes], 1)
    value, place = costs.max(1)
    if not bool((value > 0).all()):
        return None
    flat = torch.cat([parts.signs[node].flatten(1) for node in nodes], 1)
    halves = [flat.clone().scatter_(1, place[:, None], sign) for sign in (1, -1)]
    sizes = [parts.signs[node][0].numel() for node in nodes]
    both = torch.cat(halves).split(sizes, 1)
    return {node: part.view(-1, *parts.signs[node].shape[1:]) for node, part in zip(nodes, both, strict=True)}


def _bounded(
    analysis: Analysis,
    index: int,
    signs: dict[int, Tensor],
    objective: Objective,
    start: Tensor,
    shift: Tensor,
    steps: int,
) -> _Parts:
    """Bounds on parts of the ball of an image, by ascent on slopes, multipliers and the parameters of the objective."""
    count = len(next(iter(signs.values()))) if signs else 1
    part = _restricted(analysis, index, signs, count)
    last = len(analysis.graph.nodes) - 1
    relus = _relus(analysis.graph)
    slopes: dict[int, Tensor] = {}
    multipliers: dict[int, Tensor] = {}
    for node, sign in signs.items():
        slopes[node] = crown_slope(*part.boxes[node])[:, None].clone().requires_grad_()
        if sign.any():
            multipliers[node] = torch.zeros_like(slopes[node]).requires_grad_()
    parameters = start.expand(count, -1).clone().requires_grad_()
    values = [parameters, *slopes.values(), *multipliers.values()]
    optimiser = torch.optim.Adam(values, LEARNING_RATE)
    best = torch.full((count,), -torch.inf, dtype=torch.float64)
    reached: dict[int, Tensor] = {}
    for step in range(steps + 1):
        with torch.enable_grad():
            rows, constant = objective(parameters)
            pulls = {node: signs[node].to(torch.float64)[:, None] * value for node, value in multipliers.items()}
            choices = Choices({relu: slopes[read] for relu, read in relus.items()}, pulls, reached)
            linear = part.linear_lower(last, rows[:, None], choices)
            found = (part.ball.least(linear.rows) + linear.constant)[:, 0] + constant + shift
        best = torch.maximum(best, or_infinite(found.detach(), -1))
        # A network without ReLU and an objective without parameters leave nothing to ascend.
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
    costs = {node: _cost(part, node, reached[node][:, 0]) * (signs[node] == 0) for node in signs}
    return _Parts(signs, best, costs)


def _cost(part: Analysis, node: int, rows: Tensor) -> Tensor:
    """What the relaxation of every ReLU may cost: the height of its triangle times its coefficient."""
    lower, upper = part.boxes[node]
    unstable = (lower < 0) & (upper > 0)
    height = -lower * upper / torch.where(unstable, upper - lower, 1.0)
    return torch.where(unstable, rows.abs() * height, 0.0)


def _restricted(analysis: Analysis, index: int, signs: dict[int, Tensor], count: int) -> Analysis:
    """The analysis of one image, once for every part, with the boxes of ReLU inputs cut off at 0 on their side."""
    ball = analysis.ball
    assert isinstance(ball, LpBall)
    own = LpBall(ball.centre[index].expand(count, -1, -1, -1), ball.eps[index].expand(count), ball.norm)
    boxes = {}
    for node, (lower, upper) in analysis.boxes.items():
        low, high = (bound[index].expand(count, *bound.shape[1:]) for bound in (lower, upper))
        if node in signs:
            low = torch.where(signs[node] > 0, low.clamp_min(0), low)
            high = torch.where(signs[node] < 0, high.clamp_max(0), high)
        boxes[node] = (low, high)
    values = {node: value[index].expand(count, *value.shape[1:]) for node, value in analysis.references.items()}
    return Analysis(analysis.graph, own, "crown", analysis.max_memory, centre_values=values, boxes=boxes)
