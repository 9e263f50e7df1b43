"""Linear bounds that stay sound in floating point: what rounding may cost is bounded as rows go backwards, and subtracted.

With rows A of a node y, one step back gives rows B of its input x. Rows are of differences from points x₀ and y₀, which are
the values at the centre of the ball as they were computed, so that y − y₀ = L(x − x₀) + δ, where δ = Lx₀ + b − y₀ is nothing but
the rounding of y₀ (`residual`). What is computed differs from B by at most γₙ|A||L|, γₙ = n·u with n the products that are
summed and u the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms, section 3), so that the value of the bound
changes by at most γₙ|A|·(|L|·|x − x₀|): a small share of the width of the bound itself, however large the values are. These are
errors of single steps, each against the rows as they were computed: they add up. Rows are in float64 or in float32; boxes,
relaxations and values are in float64.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations.base import Elementwise, Interval, LinearOperation
from certood.analysis.bounds.operations.precision import largest, least_normal, unit_roundoff
from certood.errors import CertoodError

# Casting a weight, casting a row, adding a branch, and errors of second order.
EXTRA = 6
# The estimate itself is computed in float32.
SAFETY = 1.01
# oneDNN reads these when it is first used.
ENVIRONMENT = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


def check_precision(dtype: torch.dtype) -> None:
    """Raise CertoodError for a precision in which bounds cannot be computed soundly, or an environment that lowers it."""
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
    for name in ENVIRONMENT:
        mode = os.environ.get(name, "STRICT")
        if mode.upper() != "STRICT":
            raise CertoodError(
                f"float32 bounds need full precision: the environment sets {name}={mode}; unset it and start again"
            )
    for name in ("", "conv", "matmul"):
        # Newer versions of torch can also ask oneDNN for less.
        backend = torch.backends.mkldnn if not name else getattr(torch.backends.mkldnn, name, None)
        precision = getattr(backend, "fp32_precision", "none")
        if precision not in ("none", "ieee"):
            where = ".".join(part for part in ("mkldnn", name, "fp32_precision") if part)
            raise CertoodError(
                f"float32 bounds need full precision: torch.backends.{where} = 'ieee', which is now {precision!r}"
            )
    _check_products()


def _check_products() -> None:
    """Raise CertoodError where products of float32 lose digits, whatever makes them."""
    # 1 + 2⁻¹² has more digits than bfloat16, half precision and TF32 hold.
    value = 1 + 2.0**-12
    rows = torch.full((32, 64), value)
    found = _product(rows, torch.eye(64)), F.conv2d(rows.view(1, 32, 8, 8), torch.eye(32)[:, :, None, None])
    if any(bool((part != value).any()) for part in found):
        raise CertoodError(
            "float32 bounds need full precision, but products of float32 lose digits here: something lowers the precision of "
            "matrix products or convolutions; use float64"
        )


def _product(one: Tensor, two: Tensor) -> Tensor:
    return one @ two


def linear_loss(
    operation: LinearOperation, width: Tensor, inputs: Sequence[torch.Size], shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """e (N, *shape): going back through a linear operation changes a bound of A·(y − y₀) by at most |A|·e.

    `width` is that of the interval of y, |L| times those of its inputs.
    """
    products = operation.products(inputs, shape)
    return SAFETY * unit_roundoff(dtype) * (products + EXTRA) * width if products else torch.zeros_like(width)


def residual(operation: LinearOperation, inputs: Sequence[Tensor], value: Tensor) -> Tensor:
    """|δ| (N, *shape), at most: how far the value of a linear operation at these inputs lies from the exact one."""
    lower, upper = operation.interval([(point, point) for point in inputs])
    return torch.maximum(upper - value, value - lower).clamp_min(0)


def passing_loss(reach: Tensor, before: Tensor | None, dtype: torch.dtype) -> Tensor:
    """e (N, *shape): going back through |middle| + |half| of one changes a bound by at most e.

    `reach` is how far the input of the operation may lie from x₀; `before` is the loss of the linear operation which computed
    that input, if it is to be paid for here: rows that go on to it are no larger than |A|(|middle| + |half|).
    """
    own = reach * (SAFETY * unit_roundoff(dtype) * EXTRA)
    return own if before is None else own + before


def elementwise_loss(
    operation: Elementwise, box: Interval, x: Tensor, y: Tensor, losses: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """e (N, *shape): going back through the lines of an elementwise operation changes a bound of A·(y − y₀) by at most |A|·e.

    `losses` are that of `passing_loss`, and that of adding up the rows A themselves where several operations ask for them. It
    holds for all lower lines from which an adjustable operation may choose, which lie between those of the choices 0 and 1.
    """
    lines = [operation.lines(*box)]
    if operation.adjustable:
        lines = [operation.lines_at(torch.full_like(x, choice), *box) for choice in (0.0, 1.0)]
    slopes = torch.stack([part for one in lines for part in (one.lower_slope, one.upper_slope)]).abs().amax(0)
    shifts = torch.stack([part for one in lines for part in (one.lower_shift, one.upper_shift)]).abs().amax(0)
    # What the lines are about (x₀, y₀), rounded once for every term.
    size = slopes * x.abs() + shifts + y.abs()
    rounded = 8 * unit_roundoff(torch.float64) * size
    moved = torch.stack(
        [
            part
            for one in lines
            for part in (one.lower_slope * x + (one.lower_shift - y), one.upper_slope * x + (one.upper_shift - y))
        ]
    )
    total = moved.abs().amax(0)
    passing, *adding = losses
    loss = torch.addcmul(rounded, slopes, passing)
    for part in adding:
        loss = loss + part
    total = total + loss
    # Zeros add without rounding.
    count = int(total.count_nonzero(dim=list(range(1, total.ndim))).max()) + EXTRA
    loss = loss.add(total, alpha=SAFETY * unit_roundoff(dtype) * count)
    # What lies below the least normal number may be flushed to zero.
    least = least_normal(dtype)
    return torch.where(size > 0, loss + 4 * least * (1 + largest(*box) + x.abs()), loss)


def casting_loss(reach: Tensor, dtype: torch.dtype) -> Tensor:
    """The loss for one rounding of every coefficient of a node: a cast, or a sum of two rows."""
    return SAFETY * unit_roundoff(dtype) * reach
