"""Linear bounds in float32 that stay sound: what rounding may cost is bounded as rows go backwards, and subtracted.

Rows are of differences from a point x₀ of the ball, whose values y₀ at every node are known in float64. With rows A of a node y,
one step back gives rows B of its input x: A·(y − y₀) = B·(x − x₀) for a linear operation L. What is computed differs from B by at
most γₙ|A||L|, γₙ = n·u with n the products that are summed and u the unit roundoff (Higham, Accuracy and Stability of Numerical
Algorithms, section 3), so that the value of the bound changes by at most γₙ|A|·(|L|·|x − x₀|): a small share of the width of
the bound itself, however large the values are. These are errors of single steps, each against the rows as they were
computed: they add up. Boxes, relaxations and values are in float64 all the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.linear.rows import Passage
from certood.analysis.bounds.operations.base import LinearOperation
from certood.errors import CertoodError

# The unit roundoff of float32.
UNIT = 2.0**-24
# Casting a weight, casting a row, adding a branch, and errors of second order.
EXTRA = 6
# The estimate itself is computed in float32.
SAFETY = 1.01


def check_precision(dtype: torch.dtype) -> None:
    """Raise CertoodError for a precision in which bounds cannot be computed soundly."""
    if dtype not in (torch.float64, torch.float32):
        raise CertoodError(f"bounds are computed in float64 or float32, not {dtype}")
    if dtype == torch.float64:
        return
    products = torch.get_float32_matmul_precision()
    if products != "highest":
        raise CertoodError(
            "float32 bounds need products in full precision: torch.set_float32_matmul_precision('highest'), which is now "
            f"{products!r}"
        )
    for name in ("conv", "matmul"):
        # Newer versions of torch can also ask oneDNN for less.
        precision = getattr(getattr(torch.backends.mkldnn, name, None), "fp32_precision", "none")
        if precision not in ("none", "ieee"):
            raise CertoodError(
                f"float32 bounds need full precision: torch.backends.mkldnn.{name}.fp32_precision = 'ieee', which is now "
                f"{precision!r}"
            )


def linear_loss(operation: LinearOperation, width: Tensor, inputs: Sequence[torch.Size], shape: torch.Size) -> Tensor:
    """e (N, *shape): going back through a linear operation in float32 changes a bound of A·(y − y₀) by at most |A|·e.

    `width` is that of the interval of y, |L| times those of its inputs.
    """
    products = operation.products(inputs, shape)
    return SAFETY * UNIT * (products + EXTRA) * width if products else torch.zeros_like(width)


def passing_loss(reach: Tensor, before: Tensor | None) -> Tensor:
    """e (N, *shape): going back through |middle| + |half| of one in float32 changes a bound by at most e.

    `reach` is how far the input of the operation may lie from x₀; `before` is the loss of the linear operation which computed
    that input, if it is to be paid for here: rows that go on to it are no larger than |A|(|middle| + |half|).
    """
    own = reach * (SAFETY * UNIT * EXTRA)
    return own if before is None else own + before


def rounded_passage(passage: Passage, losses: Sequence[Tensor], dtype: torch.dtype, *, each: bool = False) -> Passage:
    """The passage in this precision; its gap pays for rounding.

    `losses` are that of `passing_loss`, and that of adding up the rows A themselves where several operations ask for them.
    With `each` all planes are (N, 1 or R, …).
    """
    middle, half, shift, gap = passage.planes
    passing, *adding = losses
    gap = torch.addcmul(gap, middle.abs() + half.abs(), passing)
    for loss in adding:
        gap = gap + loss
    total = shift.abs() + gap
    # Zeros add without rounding.
    count = int(total.count_nonzero(dim=list(range(1 + each, total.ndim))).max()) + EXTRA
    return Passage(middle, half, shift, gap.add(total, alpha=SAFETY * UNIT * count)).to(dtype)


def casting_loss(reach: Tensor) -> Tensor:
    """The loss for one rounding of every coefficient of a node: a cast, or a sum of two rows."""
    return SAFETY * UNIT * reach
