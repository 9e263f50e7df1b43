"""Operators that onnx.reference evaluates through float32 or window by window, by their definitions, in float64 with NumPy."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[Any]


def exact_operators() -> list[Any]:
    """Classes for `onnx.reference.ReferenceEvaluator(new_ops=...)`.

    Erf, Gelu and HardSwish go through float32 there. Poolings take minutes for a large image; automatic padding and the
    positions of the largest values stay with the ones that are there.
    """
    from onnx.reference.op_run import OpRun  # noqa: PLC0415 (optional)
    from onnx.reference.ops import op_average_pool, op_max_pool  # noqa: PLC0415 (optional)

    class Erf(OpRun):
        """2 / √π ∫ e^(−t²) from 0 to x."""

        op_domain = ""

        def _run(self, x: Any) -> tuple[Any]:
            return (erf(x),)

    class Gelu(OpRun):
        """x Φ(x), or its approximation by a hyperbolic tangent."""

        op_domain = ""

        def _run(self, x: Any, approximate: str | None = None) -> tuple[Any]:
            if approximate == "tanh":
                return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
            return (0.5 * x * (1 + erf(x / math.sqrt(2))),)

    class HardSwish(OpRun):
        """x · min(max(x / 6 + 1/2, 0), 1)."""

        op_domain = ""

        def _run(self, x: Any) -> tuple[Any]:
            return (x * np.clip(x / 6 + 0.5, 0, 1),)

    class MaxPool(op_max_pool.MaxPool):
        """The largest value of each window."""

        op_domain = ""

        def _run(self, x: Any, **attributes: Any) -> tuple[Any, ...]:  # type: ignore[override]
            if len(self.output) > 1 or attributes.get("auto_pad") not in (None, "NOTSET"):
                return super()._run(x, **attributes)  # type: ignore[no-any-return, no-untyped-call]
            return (pooled(x, np.maximum, -math.inf, **attributes),)

    class AveragePool(op_average_pool.AveragePool_19):
        """The mean of each window, over what of it is counted."""

        op_domain = ""

        def _run(self, x: Any, **attributes: Any) -> tuple[Any, ...]:  # type: ignore[override]
            if attributes.get("auto_pad") not in (None, "NOTSET"):
                return super()._run(x, **attributes)  # type: ignore[no-any-return, no-untyped-call]
            padding = 1.0 if attributes.get("count_include_pad") else 0.0
            counted = pooled(np.ones((1, 1, *x.shape[2:])), np.add, 0.0, padding, **attributes)
            return (pooled(x, np.add, 0.0, 0.0, **attributes) / counted,)

    return [Erf, Gelu, HardSwish, MaxPool, AveragePool]


def pooled(
    x: Array,
    join: np.ufunc,
    nothing: float,
    padding: float | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int | None = 0,
    **others: Any,
) -> Array:
    """The values of each window joined by a NumPy function: x (N, C, *sizes) to (N, C, *windows).

    `padding` is what the declared padding holds (default: `nothing`), `nothing` what lies beyond. With `ceil_mode`, a window
    that would begin after the input and the padding before it is left out. `others` are attributes that say nothing here.
    """
    rank = len(kernel_shape)
    pads, strides, dilations = pads or [0] * 2 * rank, strides or [1] * rank, dilations or [1] * rank
    widths = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    x = np.pad(x, widths, constant_values=nothing if padding is None else padding)
    counts = []
    for axis, (width, stride, dilation) in enumerate(zip(kernel_shape, strides, dilations, strict=True)):
        free = x.shape[axis + 2] - (width - 1) * dilation - 1
        count = (-(-free // stride) if ceil_mode else free // stride) + 1
        if ceil_mode and (count - 1) * stride >= x.shape[axis + 2] - pads[rank + axis]:
            count -= 1
        counts.append(count)
    reach = [
        (count - 1) * stride + (width - 1) * dilation + 1
        for count, width, stride, dilation in zip(counts, kernel_shape, strides, dilations, strict=True)
    ]
    missing = [(0, max(0, end - size)) for end, size in zip(reach, x.shape[2:], strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *missing], constant_values=nothing)
    found = np.full((*x.shape[:2], *counts), nothing)
    for offsets in itertools.product(*map(range, kernel_shape)):
        places: tuple[Any, ...] = tuple(
            slice(offset * dilation, offset * dilation + (count - 1) * stride + 1, stride)
            for offset, count, stride, dilation in zip(offsets, counts, strides, dilations, strict=True)
        )
        found = join(found, x[(slice(None), slice(None), *places)])
    return found
