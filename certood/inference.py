"""Logits of whole image sets, batch by batch."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from certood.data.source import ImageSource, to_pixels
from certood.errors import ArchitectureError, DataError

# A processor is fastest where activations stay in its caches (benchmarks/forward_batches.py): about so many places of images,
# N·H·W, in one forward pass, and the bounds of N. A GPU takes the most.
PLACES, FEWEST, MOST = 2**16, 4, 512


def forward_batch(shape: Sequence[int], device: torch.device | str) -> int:
    """How many images of shape (C, H, W) one forward pass without gradients takes on a device: 64 of 32 × 32 on a processor."""
    if torch.device(device).type != "cpu":
        return MOST
    return min(MOST, max(FEWEST, PLACES // max(1, math.prod(shape[-2:]))))


def as_tensor(images: Tensor | NDArray[np.generic]) -> Tensor:
    """Images of a user as a tensor, whatever the strides of an array, and without a warning where it must not be written to."""
    if isinstance(images, np.ndarray) and (not images.flags.writeable or min(images.strides, default=0) < 0):
        images = images.copy()
    return torch.as_tensor(images)


def as_pixels(images: Tensor | NDArray[np.generic], shape: Sequence[int]) -> Tensor:
    """Images (N, C, H, W) of a user as floats in [0, 1]: uint8 is divided by 255, everything else must be in [0, 1] already.

    Raises DataError for another shape than (N, *shape), a type that is neither floating-point nor uint8, and values outside.
    """
    found = as_tensor(images)
    if found.ndim != 4 or tuple(found.shape[1:]) != tuple(shape):
        raise DataError(f"expected images of shape (N, {', '.join(map(str, shape))}), got {tuple(found.shape)}")
    if found.dtype == torch.uint8:
        return to_pixels(found)
    if not found.is_floating_point():
        raise DataError(f"expected images as floats in [0, 1] or as uint8, got {found.dtype}")
    if found.numel() and not bool(((found >= 0) & (found <= 1)).all()):
        low, high = found.detach().amin().item(), found.detach().amax().item()
        raise DataError(
            f"expected images as floats in [0, 1] or as uint8, got values in [{low:g}, {high:g}]; "
            "values must be finite, and what is 0 to 255 is divided by 255"
        )
    return found


def collect_logits(
    model: nn.Module,
    source: ImageSource,
    *,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Tensor:
    """Logits (N, K) of every image of a set, in float64 on the CPU; the network is run in eval mode.

    Without a `batch_size` it is `forward_batch`. Raises DataError where a logit is not finite.
    """
    size = batch_size or forward_batch(source.shape, device)
    with _bar(progress) as shown:
        task = shown.add_task(escape(source.name), total=len(source))

        def batches() -> Iterator[Tensor]:
            for part in torch.arange(len(source)).split(size):
                yield to_pixels(source.batch(part).to(device))
                shown.advance(task, len(part))

        return logits_of_batches(model, batches(), source.name)


def _bar(enabled: bool) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), disable=not enabled, transient=True)


def logits_of_batches(model: nn.Module, batches: Iterable[Tensor], name: str) -> Tensor:
    """Logits (N, K) of batches of images (n, C, H, W) in [0, 1], in float64 on the CPU; the network is run in eval mode.

    `name` is what errors call the images. Raises DataError where a logit is not finite, and ArchitectureError where all outputs
    are probabilities or their logarithms.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = [model(images).cpu().double() for images in batches]
    finally:
        model.train(training)
    logits = torch.cat(parts).clone()
    if not logits.isfinite().all():
        raise DataError(
            f"the network's logits are not finite on {int((~logits.isfinite()).any(1).sum())} images of {name}"
        )
    _require_logits(logits)
    return logits


def _require_logits(outputs: Tensor) -> None:
    """Raise ArchitectureError where a network ends in a softmax: of two outputs and more, all sums over classes are 1."""
    if outputs.ndim != 2 or outputs.shape[1] < 2 or not len(outputs):
        return
    for what, sums, signs, therefore in (
        ("probabilities", outputs.sum(1), outputs >= 0, "a score would take the softmax a second time"),
        ("logarithms of probabilities", outputs.exp().sum(1), outputs <= 0, "their energy is 0 for every image"),
    ):
        if bool(signs.all()) and bool(((sums - 1).abs() < 1e-3).all()):
            raise ArchitectureError(
                f"the network gives {what}, which are no logits: {therefore}; take the softmax at its end off"
            )
