"""Linear bounds that stay sound in floating point: what rounding may cost is bounded as rows go backwards, and subtracted.

With rows A of a node y, one step back gives rows B of its input x. Rows are of differences from points x₀ and y₀, which are the
values at the centre of the ball as they were computed, so that y − y₀ = L(x − x₀) + δ, where δ = Lx₀ + b − y₀ is nothing but
the rounding of y₀ (`LinearOperation.residual`). What is computed differs from B by at most γₙ|A||L|, γₙ = n·u with n the
products that are summed and u the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms, section 3), so that
the value of the bound changes by at most γₙ|A|·(|L|·|x − x₀|): a small share of the width of the bound itself, however large
the values are. These are errors of single steps, each against the rows as they were computed: they add up. Rows are in float64
or in float32; boxes, relaxations and values are in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import LinearOperation
from certood.analysis.bounds.operations.precision import least_normal, unit_roundoff
from certood.analysis.bounds.operations.relaxations import Relaxation

# Casting a weight, casting a row, adding a branch, and errors of second order.
EXTRA = 6
# The estimate itself is computed in float32.
SAFETY = 1.01


def linear_loss(
    operation: LinearOperation, width: Tensor, inputs: Sequence[torch.Size], shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """e (N, *shape): going back through a linear operation changes a bound of A·(y − y₀) by at most |A|·e.

    `width` is that of the interval of y, |L| times those of its inputs.
    """
    products = operation.products(inputs, shape)
    return SAFETY * unit_roundoff(dtype) * (products + EXTRA) * width if products else torch.zeros_like(width)


def input_loss(reach: Tensor, before: Tensor | None, dtype: torch.dtype) -> Tensor:
    """e (N, *shape): going back through |middle| + |half| of one changes a bound by at most e.

    `reach` is how far the input of the operation may lie from x₀; `before` is the loss of the linear operation which computed
    that input, if it is to be covered here: rows that go on to it are no larger than |A|(|middle| + |half|).
    """
    own = reach * (SAFETY * unit_roundoff(dtype) * EXTRA)
    return own if before is None else own + before


def elementwise_loss(
    lines: Relaxation,
    offsets: Tensor,
    reach: Tensor,
    x: Tensor,
    y: Tensor,
    losses: Sequence[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """e (N, *shape): going back through the lines of an elementwise operation changes a bound of A·(y − y₀) by at most |A|·e.

    `offsets` are the magnitudes of what the lines are at x₀, less y₀; `reach` is that of `input_loss`. `losses` are what that
    gives, and that of adding up the rows A themselves where several operations ask for them. Lines with one axis more than
    the box stand for all between.
    """
    slopes = torch.maximum(_most(lines.lower_slope, x), _most(lines.upper_slope, x))
    shifts = torch.maximum(_most(lines.lower_shift, x), _most(lines.upper_shift, x))
    # What the lines are about (x₀, y₀), rounded once for every term.
    point = x.abs()
    size = torch.addcmul(shifts + y.abs(), slopes, point)
    rounded = 8 * unit_roundoff(torch.float64) * size
    total = _most(offsets, x)
    passing, *adding = losses
    loss = torch.addcmul(rounded, slopes, passing)
    for part in adding:
        loss = loss + part
    total = total + loss
    # Zeros add without rounding: where that is worth counting, only what is not zero is a term.
    terms = (
        total[0].numel() if dtype == torch.float64 else int(total.reshape(len(total), -1).count_nonzero(dim=1).max())
    )
    count = terms + EXTRA
    loss = loss.add(total, alpha=SAFETY * unit_roundoff(dtype) * count)
    # What lies below the least normal number may be flushed to zero.
    least = least_normal(dtype)
    return torch.where(size > 0, loss + 4 * least * (1 + torch.add(reach, point, alpha=2)), loss)


def casting_loss(reach: Tensor, dtype: torch.dtype) -> Tensor:
    """The loss for one rounding of every coefficient of a node: a cast, or a sum of two rows."""
    return SAFETY * unit_roundoff(dtype) * reach


def _most(values: Tensor, like: Tensor) -> Tensor:
    """The largest magnitude over a first axis that `like` does not have, if there is one."""
    return values.abs() if values.ndim == like.ndim else values.abs().amax(0)
