"""α-CROWN: the lower slopes of ReLU are chosen by gradient ascent on the bound (Xu et al., ICLR 2021, arXiv 2011.13824)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.bounds.ball import or_infinite
from certood.analysis.bounds.linear.backward import BackwardPass
from certood.analysis.bounds.linear.choices import Choices
from certood.analysis.bounds.operations.base import Rows

LEARNING_RATE = 0.25
DECAY = 0.97
PATIENCE = 10


@dataclass(frozen=True)
class Ascent:
    """How slopes are optimised: in so many `steps`, for every row its own, or the same for all rows that are bounded at once."""

    steps: int
    shared: bool = False


def optimised_least(backward: BackwardPass, node: int, rows: Rows, ascent: Ascent) -> Tensor:
    """Lower bounds (N, R) of rows·(y − y₀) of a node; the best seen for every row, CROWN's own included: never looser than it.

    Slopes are of as many neurons as rows reach. They are projected back onto [0, 1] after each step rather than
    clamped in the graph, whose gradient at the ends of a clamp would be zero. Stops early when no row has gained for ten steps.
    """
    choices, best, idle = Choices(shared=ascent.shared), None, 0
    for step in range(ascent.steps + 1):
        with torch.enable_grad():
            reached, constant = backward.to_image(node, rows, choices=choices)
            found = backward.nodes.ball.least(reached) + constant
            loss = -found.sum()
        values = or_infinite(found.detach(), -1)
        if best is None:
            best = values
            if not choices.slopes:
                break
            optimiser = torch.optim.Adam(choices.slopes.values(), lr=LEARNING_RATE)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, DECAY)
        else:
            idle = 0 if (values - best > 1e-4 * best.abs() + 1e-12).any() else idle + 1
            best = torch.maximum(best, values)
        if step == ascent.steps or idle >= PATIENCE:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for slope in choices.slopes.values():
                slope.clamp_(0, 1)
    assert best is not None
    return best
