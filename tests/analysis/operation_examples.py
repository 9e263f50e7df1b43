"""One example of every operation, with what it is in plain PyTorch: the contract test runs over these."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.operations import (
    ChannelAffine,
    Concatenation,
    Convolution,
    Gate,
    Linear,
    LogSoftmax,
    LogSumExp,
    Maximum,
    MaxPool,
    Monotone,
    Operation,
    Product,
    Reshape,
    ScaledSum,
    Softmax,
    TransposedConvolution,
    WeightedSum,
    activations,
)
from certood.analysis.bounds.operations.sorted_pairs import SortedPairs


@dataclass(frozen=True)
class Example:
    """An operation, the shapes of a sample of its inputs, its value in plain PyTorch, and how large inputs are."""

    operation: Operation
    shapes: tuple[tuple[int, ...], ...]
    value: Callable[..., Tensor]
    reach: float = 1.5

    @property
    def sizes(self) -> list[torch.Size]:
        return [torch.Size(shape) for shape in self.shapes]

    def points(self, count: int, seed: int = 0) -> list[Tensor]:
        """Inputs in the boxes of `boxes`: random, corners, ties, and one large element among small ones."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for shape, (low, high) in zip(self.shapes, self.boxes(), strict=True):
            shares = torch.rand(count, *shape, dtype=torch.float64, generator=generator)
            shares[: count // 3] = (shares[: count // 3] > 0.5).double()
            size = math.prod(shape)
            for place in range(min(count // 3, 2 * size)):
                sparse = torch.zeros(size, dtype=torch.float64)
                sparse[[place % size, (place * (1 + place // size)) % size]] = 1
                shares[count // 3 + place] = sparse.view(shape)
            found.append(low + shares * (high - low))
        return found

    def boxes(self) -> list[tuple[Tensor, Tensor]]:
        """One box (1, *shape) for every input, not symmetric."""
        generator = torch.Generator().manual_seed(7)
        found = []
        for shape in self.shapes:
            middle = 0.1 * torch.randn(1, *shape, dtype=torch.float64, generator=generator)
            found.append((middle - self.reach, middle + 0.8 * self.reach))
        return found


def _random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _convolution(stride: int, padding: int, dilation: int, groups: int) -> Example:
    weight, bias = _random(4, 4 // groups, 3, 2), _random(4)
    geometry = (stride, stride), (padding, padding), (dilation, dilation)
    return Example(
        Convolution(weight, bias, *geometry, groups),
        ((4, 7, 6),),
        lambda x: F.conv2d(x, weight, bias, stride, padding, dilation, groups),
    )


def _transposed() -> Example:
    weight = _random(4, 2, 3, 3)
    inner = Convolution(weight, _random(4), (2, 2), (1, 1), (1, 1), 1)
    return Example(
        TransposedConvolution(inner, torch.Size((2, 7, 7))),
        ((4, 4, 4),),
        lambda x: F.conv_transpose2d(x, weight, None, 2, 1),
    )


def _scalar(activation: activations.Activation, value: Callable[[Tensor], Tensor], reach: float = 4.0) -> Example:
    return Example(activation, ((9,),), value, reach)


_MATRIX, _BIAS, _SCALE, _SHIFT = _random(5, 6), _random(5), _random(3, 1, 1, seed=4), _random(3, 1, 1, seed=5)
_LEAST = _random(1, 6, seed=8).sort().values
_MOST = _LEAST + 0.5

EXAMPLES: dict[str, Example] = {
    "matrix": Example(Linear(_MATRIX, _BIAS), ((6,),), lambda x: x @ _MATRIX.T + _BIAS),
    "matrix on the last axis": Example(Linear(_MATRIX, None), ((3, 6),), lambda x: x @ _MATRIX.T),
    "convolution": _convolution(1, 1, 1, 1),
    "strided convolution": _convolution(2, 1, 1, 1),
    "dilated convolution": _convolution(1, 0, 2, 2),
    "transposed convolution": _transposed(),
    "channel affine": Example(ChannelAffine(_SCALE, _SHIFT), ((3, 2, 4),), lambda x: x * _SCALE + _SHIFT),
    "broadcast affine": Example(ChannelAffine(_SCALE, _SHIFT), ((1, 2, 4),), lambda x: x * _SCALE + _SHIFT),
    "scaled sum": Example(
        ScaledSum(_SCALE, torch.Size((1, 2, 1))), ((3, 2, 4),), lambda x: (x * _SCALE).sum((1, 3), keepdim=True)
    ),
    "reshape": Example(Reshape((2, 6)), ((3, 4),), lambda x: x.reshape(-1, 2, 6)),
    "average pooling": Example(
        Monotone(lambda x: F.avg_pool2d(x, 3, 2, 1), 9), ((2, 6, 6),), lambda x: F.avg_pool2d(x, 3, 2, 1)
    ),
    "slice": Example(Monotone(lambda x: x[:, 1:, ::2], 0), ((3, 5),), lambda x: x[:, 1:, ::2]),
    "weighted sum": Example(WeightedSum(1.0, -2.0), ((3, 4), (3, 4)), lambda x, y: x - 2 * y),
    "broadcast sum": Example(WeightedSum(0.5, 1.0), ((3, 4), (1, 4)), lambda x, y: x / 2 + y),
    "concatenation": Example(Concatenation(0), ((2, 3, 3), (1, 3, 3)), lambda x, y: torch.cat([x, y], 1)),
    "max pooling": Example(
        MaxPool((3, 3), (1, 1), (1, 1), (1, 1), False), ((1, 4, 4),), lambda x: F.max_pool2d(x, 3, 1, 1)
    ),
    "product": Example(Product(), ((3, 2, 2), (3, 1, 1)), lambda x, y: x * y),
    "maximum": Example(Maximum((0,), torch.Size((2,))), ((3, 2),), lambda x: x.amax(1)),
    "logsumexp": Example(LogSumExp((0,), torch.Size((2,))), ((3, 2),), lambda x: x.logsumexp(1), 3.0),
    "softmax": Example(Softmax((0,), torch.Size((4,))), ((4,),), lambda x: x.softmax(1), 8.0),
    "log-softmax": Example(LogSoftmax((0,), torch.Size((4,))), ((4,),), lambda x: x.log_softmax(1), 3.0),
    "sorted pairs": Example(SortedPairs(1), ((3, 2, 2),), lambda x: torch.stack([x.amin(2), x.amax(2)], 2)),
    "pairs in falling order": Example(
        SortedPairs(0, descending=True), ((2, 3),), lambda x: torch.stack([x.amax(1), x.amin(1)], 1)
    ),
    "gate": Example(Gate(_LEAST, _MOST), ((6,),), lambda x: x * (_LEAST + _MOST) / 2),
    "relu": _scalar(activations.RELU, torch.relu),
    "leaky relu": _scalar(activations.leaky_relu(0.2), lambda x: torch.where(x > 0, x, 0.2 * x)),
    "abs": _scalar(activations.ABS, torch.abs),
    "clamp": _scalar(activations.clamp(-1.0, 2.0), lambda x: x.clamp(-1, 2)),
    "hardsigmoid": _scalar(activations.HARDSIGMOID, lambda x: (x / 6 + 0.5).clamp(0, 1)),
    "hardswish": _scalar(activations.HARDSWISH, lambda x: x * (x / 6 + 0.5).clamp(0, 1)),
    "sigmoid": _scalar(activations.SIGMOID, lambda x: 1 / (1 + (-x).exp())),
    "tanh": _scalar(activations.TANH, lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())),
    "silu": _scalar(activations.SILU, lambda x: x / (1 + (-x).exp())),
    "gelu": _scalar(activations.GELU, lambda x: x * (1 + torch.special.erf(x / math.sqrt(2))) / 2),
    "exp": _scalar(activations.EXP, torch.exp),
    "softplus": _scalar(activations.softplus(2.0), lambda x: torch.log1p((2 * x).exp()) / 2),
    "elu": _scalar(activations.elu(0.7), lambda x: torch.where(x > 0, x, 0.7 * x.expm1())),
}


def dense(example: Example, points: Sequence[Tensor], which: int) -> Tensor:
    """Jacobians (P, outputs, inputs) with respect to one input at points, one by one, by autograd."""

    def one(*inputs: Tensor) -> Tensor:
        return example.value(*(x[None] for x in inputs)).flatten()

    found = [
        torch.autograd.functional.jacobian(one, tuple(x[index] for x in points)) for index in range(len(points[0]))
    ]
    return torch.stack([jacobian[which].flatten(1) for jacobian in found])
