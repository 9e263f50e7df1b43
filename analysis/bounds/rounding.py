"""Linear bounds in float32 that stay sound: what rounding may cost is bounded as rows go backwards, and subtracted.

With rows A of a node y, one step back gives rows B of its inputs x and a constant, exactly A·y = B·x + c for a linear operation
L. What is computed differs from B by at most γₙ|A||L|, γₙ = n·u with n the products that are summed and u the unit roundoff
(Higham, Accuracy and Stability of Numerical Algorithms, section 3), so that the value of the bound changes by at most
γₙ|A|·(|L|·|x|), with |x| from the box of x. These are errors of single steps, each against the rows as they were computed: they
add up. Boxes, relaxations and constants are in float64 all the same.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.operations import (
    ChannelAffine,
    Concatenation,
    Convolution,
    Interval,
    Linear,
    LinearOperation,
    Monotone,
    Operation,
    WeightedSum,
)
from certood.analysis.bounds.relaxations import Relaxation
from certood.analysis.bounds.sums import BLOCK, UNIT
from certood.errors import CertoodError

# Casting a weight, casting a row, adding a branch, and errors of second order.
EXTRA = 6
# The estimate itself is computed in float32.
SAFETY = 1.01


def check_precision(dtype: torch.dtype) -> None:
    """Raise CertoodError for a precision in which bounds cannot be computed soundly."""
    if dtype not in (torch.float64, torch.float32):
        raise CertoodError(f"bounds are computed in float64 or float32, not {dtype}")
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        raise CertoodError(
            "float32 bounds need products in full precision: torch.set_float32_matmul_precision('highest'), which is now "
            f"{torch.get_float32_matmul_precision()!r}"
        )


def operations_in(graph: Graph, dtype: torch.dtype) -> list[Operation]:
    """The operations of a graph with all their constants in another precision."""
    return [_cast(node.operation, dtype) for node in graph.nodes]


def _cast(operation: Operation, dtype: torch.dtype) -> Operation:
    constants = {
        name: value.to(dtype)
        for name, value in vars(operation).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    if not constants:
        return operation
    found = copy.copy(operation)
    vars(found).update(constants)
    return found


def linear_loss(operation: LinearOperation, boxes: Sequence[Interval], shape: torch.Size) -> Tensor | None:
    """e (N, *shape): going back through a linear operation in float32 changes a bound of A·y by at most |A|·e.

    None where coefficients are only moved.
    """
    if isinstance(operation, Concatenation) or (isinstance(operation, Monotone) and operation.overlap == 0):
        return None
    largest = [torch.maximum(lower.abs(), upper.abs()) for lower, upper in boxes]
    inputs = [size.shape[1:] for size in largest]
    low, high = operation.interval([(-size, size) for size in largest])
    # |L|·|x| is half the width, the constant part the middle.
    spread, constant = (high - low) / 2, ((high + low) / 2).abs()
    return (
        SAFETY * UNIT * (_products(operation, inputs, shape) * spread + (_biases(operation) + BLOCK + EXTRA) * constant)
    )


def _products(operation: LinearOperation, inputs: Sequence[torch.Size], shape: torch.Size) -> int:
    """How many products are summed into a coefficient of the input, at most, and what else may round."""
    match operation:
        case Linear():
            count = len(operation.weight)
        case Convolution():
            count = len(operation.weight) // operation.groups * operation.weight.shape[2] * operation.weight.shape[3]
        case Monotone() if operation.overlap is not None:
            count = operation.overlap
        case ChannelAffine() | WeightedSum() if all(size == shape for size in inputs):
            count = 1
        case _:
            # Broadcasting sums over the axes along which an input was repeated.
            count = shape.numel()
    return count + EXTRA


def _biases(operation: LinearOperation) -> int:
    """How many products with a constant are summed before sums go in blocks."""
    return len(operation.bias) if isinstance(operation, Convolution) else 0


def rounded_lines(lines: Relaxation, box: Interval, dtype: torch.dtype) -> Relaxation:
    """The relaxation of an elementwise operation, whose input lies in this box, in this precision, with what that may cost."""
    if dtype == torch.float64:
        return lines
    largest = torch.maximum(box[0].abs(), box[1].abs())
    if lines.lower_slope.ndim > largest.ndim:
        largest = largest[:, None]
    slopes = lines.lower_slope.abs() + lines.upper_slope.abs()
    shifts = torch.maximum(lines.lower_shift.abs(), lines.upper_shift.abs())
    # Zeros add without rounding.
    count = int((shifts > 0).flatten(1 - box[0].ndim).sum(-1).max()) + EXTRA
    return lines.rounded(dtype, SAFETY * UNIT * ((EXTRA + 2) * slopes * largest + 2 * count * shifts))


def casting_loss(box: Interval) -> Tensor:
    """The same for one rounding of every coefficient of a node: a cast, or a sum of two rows."""
    return SAFETY * UNIT * torch.maximum(box[0].abs(), box[1].abs())
