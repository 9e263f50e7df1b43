"""Reductions over axes."""

from collections.abc import Callable

from torch import Tensor

from certood.onnx.calls import OPERATORS, Call

# The first operator set in which the axes are an input.
AXES_AS_INPUT = 18
Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


def _reduced(name: str, reduction: Reduction) -> Callable[[Call], Tensor]:
    def reduce(call: Call) -> Tensor:
        x, keep = call.tensor(0), bool(call.attribute("keepdims", 1))
        since = 13 if name == "ReduceSum" else AXES_AS_INPUT
        axes = call.sizes(1) if call.version >= since else call.attribute("axes", None)
        if not axes and call.version >= since and call.attribute("noop_with_empty_axes", 0):
            return x
        call.attribute("noop_with_empty_axes", 0)
        found = reduction(x, axes or list(range(x.ndim)), keep)
        return found if found.dtype == x.dtype else found.to(x.dtype)

    return reduce


OPERATORS |= {name: _reduced(name, reduction) for name, reduction in REDUCTIONS.items()}
