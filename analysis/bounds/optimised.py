"""α-CROWN: the lower slopes of ReLU are chosen by gradient ascent on the bound (Xu et al., ICLR 2021, arXiv 2011.13824)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from certood.analysis.bounds.activations import RELU
from certood.analysis.bounds.choices import Choices
from certood.analysis.bounds.relaxations import crown_slope

if TYPE_CHECKING:
    from certood.analysis.bounds.propagation import Analysis

LEARNING_RATE = 0.25
DECAY = 0.97
PATIENCE = 10


def optimised_least(analysis: Analysis, node: int, rows: Tensor, iterations: int) -> Tensor:
    """Lower bounds (N, R) of rows·(y − y₀) of a node; the best seen for every row, CROWN's own included: never looser than it.

    Every row has its own slopes. The slopes are projected back onto [0, 1] after each step rather than clamped in the
    graph, whose gradient at the ends of a clamp would be zero. Stops early when no row has gained for ten steps.
    """
    graph = analysis.graph
    with torch.no_grad():
        best = analysis.plain_least(node, rows)
    slopes: dict[int, Tensor] = {}
    for index in range(1, node + 1):
        source = graph.nodes[index].inputs[0]
        if graph.nodes[index].operation is RELU and source not in slopes:
            lower, upper = analysis.boxes[source]
            start = crown_slope(lower, upper).to(analysis.dtype)[:, None].expand(-1, rows.shape[1], *lower.shape[1:])
            slopes[source] = start.clone().requires_grad_()
    if not slopes or not iterations:
        return best
    optimiser = torch.optim.Adam(slopes.values(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, DECAY)
    idle = 0
    for _ in range(iterations):
        with torch.enable_grad():
            linear = analysis.linear_change(node, rows, Choices(slopes))
            found = analysis.ball.least(linear.rows) + linear.constant
            optimiser.zero_grad()
            (-found.sum()).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
            found = found.detach()
            gain = torch.where(found.isnan(), best, found) - best
            idle = 0 if (gain > 1e-4 * best.abs() + 1e-12).any() else idle + 1
            best = best + gain.clamp_min(0)
        if idle >= PATIENCE:
            break
    return best
