"""Certified Lipschitz constants of a score: local ones on a grid of radii, the radii they certify, and a global one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds import Analysis, LpBall, analyse, score_gradient
from certood.analysis.bounds.ball import DUAL
from certood.analysis.bounds.operations.activations import Activation
from certood.analysis.bounds.operations.axis import LogSoftmax, LogSumExp, Maximum, Softmax
from certood.analysis.bounds.operations.base import (
    ChannelAffine,
    Concatenation,
    Interval,
    Linear,
    Monotone,
    Operation,
    WeightedSum,
)
from certood.analysis.bounds.operations.convolution import Convolution
from certood.analysis.bounds.operations.pairs import MaxPool, Product
from certood.analysis.question import Question
from certood.scores import MSP, AbsentClass, Energy, MaxLogit, Score

# Rounding of norms computed in float64, relative.
SLACK = 1e-9


def local_lipschitz(question: Question, analysis: Analysis, ball: LpBall) -> Tensor:
    """Certified L (N,) with |S(y) − S(z)| ≤ L·‖y − z‖_p for all y, z of the ball; infinite where nothing is known."""
    found = score_gradient(
        analysis, ball, question.score, absent_class=question.absent_class, elementwise=ball.centre[0].numel() <= 256
    )
    return found.dual_norm


def nested(constants: Tensor) -> Tensor:
    """Constants (T, N) of growing balls, each lowered to those of the larger balls: what holds there holds inside as well."""
    return constants.flip(0).cummin(0).values.flip(0)


def min_rule_radius(margins: Tensor, grid: Sequence[float], constants: Tensor) -> Tensor:
    """The largest min(ε, m/L(ε)) (N,) over a grid of radii ε, for margins (N,) and constants (T, N).

    The minimum is obligatory: L(ε) says nothing outside its ball.
    """
    radii = torch.tensor(list(grid), dtype=torch.float64)[:, None]
    return torch.minimum(radii, margins[None] / constants.clamp_min(1e-300)).amax(0).clamp_min(0)


def step_rule_radius(margins: Tensor, grid: Sequence[float], constants: Tensor) -> Tensor:
    """The largest t (N,) with ∫₀ᵗ L ≤ m, L the step function that is L(tᵢ) between tᵢ₋₁ and tᵢ; at most the last tᵢ."""
    left, radius = margins.clone(), torch.zeros_like(margins)
    before = 0.0
    going = torch.ones_like(margins, dtype=torch.bool)
    for end, constant in zip(grid, constants, strict=True):
        possible = left / constant.clamp_min(1e-300)
        step = possible.clamp(0, end - before)
        radius = radius + torch.where(going, step, 0.0)
        going = going & (possible >= end - before)
        left = left - constant * (end - before)
        before = end
    return radius


def global_lipschitz(question: Question) -> float:
    """A constant L with |S(y) − S(z)| ≤ L·‖y − z‖_p for all images in [0, 1]^d: a product of operator norms over the layers.

    Branches add up, joined branches combine by the p-norm; slopes and factors of products are those that occur on images. The
    last layer counts by its largest row, because every score here changes by at most its own constant times the largest
    change of a logit. Infinite where no bound is known.
    """
    graph, norm = question.graph, float(question.norm)
    cube = LpBall(torch.full((1, *graph.nodes[0].shape), 0.5, dtype=torch.float64), 0.5)
    boxes = analyse(graph, cube, "interval").boxes
    constants = [1.0]
    for index, node in enumerate(graph.nodes[1:], start=1):
        inputs = [constants[source] for source in node.inputs]
        shapes = [graph.nodes[source].shape for source in node.inputs]
        around = [boxes[source] for source in node.inputs]
        last = index == len(graph.nodes) - 1
        constants.append(_constant(node.operation, inputs, shapes, around, norm, last=last))
    return constants[-1] * _score_factor(question.score) * (1 + SLACK)


def _score_factor(score: Score) -> float:
    """How much a score changes, at most, where every logit changes by at most one."""
    match score:
        case Energy() | MaxLogit():
            return 1.0
        case MSP() | AbsentClass():
            return 0.5  # ‖∂p_k/∂z‖₁ = 2p(1 − p)
        case _:
            return math.inf


def _constant(  # noqa: PLR0911, PLR0912 (one case an operation)
    operation: Operation,
    inputs: Sequence[float],
    shapes: Sequence[torch.Size],
    boxes: Sequence[Interval],
    norm: float,
    *,
    last: bool,
) -> float:
    match operation:
        case Linear() if last:
            return inputs[0] * float(operation.weight.norm(DUAL[norm], dim=1).max())
        case Linear():
            return inputs[0] * _matrix_norm(operation.weight, norm)
        case Convolution():
            return inputs[0] * convolution_norm(operation, shapes[0], norm)
        case ChannelAffine():
            result = torch.broadcast_shapes(operation.scale.shape, operation.shift.shape, shapes[0])
            return inputs[0] * float(operation.scale.abs().max()) * _copies(result, shapes[0], norm)
        case Monotone():
            return inputs[0] * _monotone_norm(operation, shapes[0], norm)
        case WeightedSum():
            result = torch.broadcast_shapes(*shapes)
            parts = zip(operation.factors, inputs, shapes, strict=True)
            return sum(abs(factor) * constant * _copies(result, shape, norm) for factor, constant, shape in parts)
        case Concatenation():
            return max(inputs) if norm == math.inf else float(torch.tensor(inputs).double().norm(norm))
        case Activation():
            least, most = operation.slopes(*boxes[0])
            return inputs[0] * float(torch.maximum(least.abs(), most.abs()).max())
        case MaxPool():
            # Every element may be the largest of several windows; the largest of a window changes by at most the largest change.
            overlaps = math.prod(
                math.ceil((dilation * (kernel - 1) + 1) / stride)
                for kernel, stride, dilation in zip(operation.kernel, operation.stride, operation.dilation, strict=True)
            )
            return inputs[0] * (1.0 if norm == math.inf else overlaps ** (1 / norm))
        case Product():
            first, second = (float(torch.maximum(low.abs(), high.abs()).max()) for low, high in boxes)
            result = torch.broadcast_shapes(*shapes)
            copies = [_copies(result, shape, norm) for shape in shapes]
            return second * copies[0] * inputs[0] + first * copies[1] * inputs[1]
        case Maximum() | LogSumExp():
            return inputs[0]
        case Softmax():
            return inputs[0] / 2  # Σⱼ |∂pₖ/∂zⱼ| = 2pₖ(1 − pₖ), and the Jacobian is symmetric
        case LogSoftmax():
            # I − 1pᵀ: rows sum to 2(1 − pₖ), columns to at most K, and ‖1‖₂‖p‖₂ ≤ √K
            count = math.prod(shapes[0][axis] for axis in operation.axes)
            return inputs[0] * {math.inf: 2.0, 2.0: 1 + math.sqrt(count), 1.0: float(count)}[norm]
        case _:
            return math.inf


def _copies(result: Sequence[int], shape: Sequence[int], norm: float) -> float:
    """By how much broadcasting an input of this shape to the result enlarges its norm."""
    return 1.0 if norm == math.inf else (math.prod(result) / max(1, math.prod(shape))) ** (1 / norm)


def _matrix_norm(weight: Tensor, norm: float) -> float:
    if norm == 2:
        return float(torch.linalg.matrix_norm(weight, 2)) * (1 + SLACK)
    return float(weight.abs().sum(1 if norm == math.inf else 0).max())


def convolution_norm(operation: Convolution, shape: torch.Size, norm: float) -> float:
    """An upper bound of the operator norm of a zero-padded convolution on planes of this shape.

    p = ∞ and 1: the largest absolute row and column sums over the kernel. p = 2: the smaller of √(‖A‖₁‖A‖_∞) (Schur) and the
    largest singular value over the Fourier frequencies of a circular convolution on a grid without wrap-around, of which
    the zero-padded, strided one is a part (Sedghi et al., ICLR 2019, arXiv 1805.10408).
    """
    weight = operation.weight
    rows = float(weight.abs().sum((1, 2, 3)).max())
    columns = _column_sum(operation)
    if norm == math.inf:
        return rows
    if norm == 1:
        return columns
    schur = math.sqrt(rows * columns)
    extent = [
        dilation * (kernel - 1) + 1 for dilation, kernel in zip(operation.dilation, weight.shape[2:], strict=True)
    ]
    grid = [size + 2 * pad + reach - 1 for size, pad, reach in zip(shape[1:], operation.padding, extent, strict=True)]
    spread = weight.new_zeros(*weight.shape[:2], *extent)
    spread[:, :, :: operation.dilation[0], :: operation.dilation[1]] = weight
    if grid[0] * grid[1] * weight.shape[0] * weight.shape[1] > 2**26:
        return schur
    frequencies = torch.fft.fft2(spread, s=grid).permute(2, 3, 0, 1).unflatten(2, (operation.groups, -1))
    return min(schur, float(torch.linalg.matrix_norm(frequencies, 2).max()) * (1 + SLACK))


def _column_sum(operation: Convolution) -> float:
    """The largest absolute sum over the outputs that read one input: with a stride only every so many taps do."""
    magnitude = operation.weight.abs().unflatten(0, (operation.groups, -1)).sum(1)
    sums = [
        magnitude[..., _met(0, down, operation), :][..., _met(1, right, operation)].sum((2, 3)).max()
        for down in range(operation.stride[0])
        for right in range(operation.stride[1])
    ]
    return float(torch.stack(sums).max())


def _met(axis: int, residue: int, operation: Convolution) -> list[int]:
    """The taps along an axis that fall on inputs of one residue modulo the stride."""
    taps = range(operation.weight.shape[2 + axis])
    return [tap for tap in taps if tap * operation.dilation[axis] % operation.stride[axis] == residue]


def _monotone_norm(operation: Monotone, shape: torch.Size, norm: float) -> float:
    ones = torch.ones(1, *shape, dtype=torch.float64)
    rows = operation.forward([ones])
    columns = operation.transpose(torch.ones_like(rows)[:, None], [shape])[0]
    largest = float(rows.max()), float(columns.max())
    if norm == 2:
        return math.sqrt(largest[0] * largest[1])
    return largest[0] if norm == math.inf else largest[1]
