"""Resizing by interpolation, as the product with a matrix along each axis, so that every coordinate rule is exact."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.onnx.calls import Call, operator

# (position in the output, its size, size of the input, scale) -> position in the input.
Coordinate = Callable[[int, float, int, float], float]
COORDINATES: dict[str, Coordinate] = {
    "half_pixel": lambda place, new, old, scale: (place + 0.5) / scale - 0.5,
    "half_pixel_symmetric": lambda place, new, old, scale: (
        old / 2 * (1 - new / (scale * old)) + (place + 0.5) / scale - 0.5
    ),
    "pytorch_half_pixel": lambda place, new, old, scale: (place + 0.5) / scale - 0.5 if new > 1 else 0.0,
    "align_corners": lambda place, new, old, scale: place * (old - 1) / (new - 1) if new > 1 else 0.0,
    "asymmetric": lambda place, new, old, scale: place / scale,
}
ROUNDINGS: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


@operator("Resize", "Upsample")
def resize(call: Call) -> Tensor:
    """Interpolation to given sizes or by given scales: nearest or linear; raises CheckpointError for other modes."""
    x, mode = call.tensor(0), call.attribute("mode", "nearest")
    rule = call.attribute("coordinate_transformation_mode", "half_pixel" if call.version > 10 else "asymmetric")
    rounding = call.attribute("nearest_mode", "round_prefer_floor" if call.version > 10 else "floor")
    call.attribute("cubic_coeff_a", -0.75)
    call.attribute("extrapolation_value", 0.0)
    call.expect("exclude_outside", 0)
    call.expect("antialias", 0)
    call.expect("keep_aspect_ratio_policy", "stretch")
    if mode not in ("nearest", "linear") or rule not in COORDINATES or rounding not in ROUNDINGS:
        raise call.node.error(
            f"mode {mode!r} with coordinates {rule!r} and rounding {rounding!r} is not supported; nearest and linear are, with "
            f"{', '.join(COORDINATES)} and {', '.join(ROUNDINGS)}"
        )
    axes = [axis % x.ndim for axis in call.attribute("axes", list(range(x.ndim)))]
    for axis, size, scale in zip(axes, *_targets(call, x, axes), strict=True):
        if axis == call.batch_axis(0):
            continue
        old = int(x.shape[axis])
        if size == old and scale == 1:
            continue
        places = [COORDINATES[rule](place, size, old, scale) for place in range(size)]
        rows = [_weights(place, old, ROUNDINGS[rounding] if mode == "nearest" else None) for place in places]
        matrix = torch.tensor(rows, dtype=x.dtype, device=x.device)
        x = F.linear(x.transpose(axis, -1), matrix).transpose(axis, -1)
    return x


def _targets(call: Call, x: Tensor, axes: Sequence[int]) -> tuple[list[int], list[float]]:
    """The new size and the scale of each axis; that of the images is left as it is."""
    legacy = call.version <= 10
    scales = call.numbers(1 if legacy else 2) if not legacy or call.has(1) else call.attribute("scales", None)
    sizes = None if legacy else call.sizes(3)
    if not legacy:
        call.numbers(1)
    olds = [1 if axis == call.batch_axis(0) else int(x.shape[axis]) for axis in axes]
    if sizes:
        news = [
            old if axis == call.batch_axis(0) else int(size) for axis, old, size in zip(axes, olds, sizes, strict=True)
        ]
        return news, [new / old for new, old in zip(news, olds, strict=True)]
    if not scales:
        raise call.node.error("neither scales nor sizes are given")
    return [math.floor(old * scale) for old, scale in zip(olds, scales, strict=True)], list(scales)


def _weights(place: float, size: int, rounding: Callable[[float], int] | None) -> list[float]:
    """What each element of an axis of this size adds to a value at this position."""
    row = [0.0] * size
    if rounding is not None:
        row[min(max(rounding(place), 0), size - 1)] = 1.0
        return row
    lower = math.floor(place)
    share = place - lower
    row[min(max(lower, 0), size - 1)] += 1 - share
    row[min(max(lower + 1, 0), size - 1)] += share
    return row
