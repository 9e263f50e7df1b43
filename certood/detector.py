"""A detector: a network, a score of its logits, and the threshold γ that accepts."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from certood.data.source import ImageSource
from certood.data.splits import Split
from certood.devices import device_of, resolve_device
from certood.errors import CertoodError, CheckpointError
from certood.inference import as_pixels, as_tensor, collect_logits, forward_batch, logits_of_batches
from certood.metrics import threshold_at_tpr
from certood.models.guarded import GuardDescription
from certood.scores import Score
from certood.scores.base import FirstOutputs

Images = Tensor | NDArray[np.generic]


@dataclass(frozen=True)
class Detector:
    """An OOD detector: a network in eval mode, a score of its logits, and the threshold γ that accepts.

    `input_shape` is (C, H, W) in pixels; `mean` and `std` are the network's own normalisation, for the record;
    `options` are those with which the architecture was built. With an absent class the last output is none of `classes`.
    With a `guard`, `model` is a `GuardedNetwork`, of whose classifier all else speaks; the guard's output is the last one.
    `split` says which in-distribution images were trained on and which held out, where that is known.
    """

    model: nn.Module
    score: Score
    threshold: float | None
    architecture: str
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    absent_class: bool = False
    tpr: float = 0.95
    split: Split | None = None
    guard: GuardDescription | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and (type(self.threshold) not in (int, float) or math.isnan(self.threshold)):
            raise CheckpointError(f"expected a threshold γ that is a number, or None, got {self.threshold!r}")
        self.model.eval()

    @property
    def output_score(self) -> Score:
        """The score as a function of all outputs of the network: an absent class enters only where the score reads it."""
        return self.reading(self.score)

    @property
    def outputs(self) -> int:
        """How many outputs the classifier has; that of a guard comes after them."""
        return len(self.classes) + self.absent_class

    def reading(self, score: Score) -> Score:
        """A score as a function of all outputs of the network; raises CertoodError where the network lacks what it reads."""
        if score.needs_guard and self.guard is None:
            raise CertoodError(
                f"score {score.name!r} needs a detector with a guard, as `certood train --guard-of` makes it"
            )
        found = score.on(len(self.classes), self.outputs)
        return found if self.guard is None or score.needs_guard else FirstOutputs(found, self.outputs)

    def bounded_part(self, *, whole: bool = False) -> tuple[nn.Module, Score]:
        """What is bounded to certify the detector: the network, or a part of it, and a score of its outputs whose bounds hold for
        the detector's. Of a guarded detector it is the guard, and with `whole` both networks. Raises CertoodError where
        `whole` asks for what there is not."""
        if whole and self.guard is None:
            raise CertoodError(
                "the whole of a guarded detector was asked for (--bound-base), and this one has no guard"
            )
        return self.output_score.part(self.model, whole=whole)

    @property
    def device(self) -> torch.device:
        """Where the network is: scores and certificates are computed there."""
        return device_of(self.model)

    def to(self, device: torch.device | str) -> "Detector":
        """The same detector with its network on another device (cpu, cuda, cuda:N, mps or auto); this one stays where it is.

        Raises DeviceError where this machine has no such device.
        """
        place = resolve_device(str(device))
        if place == self.device:
            return self
        return replace(self, model=copy.deepcopy(self.model).to(place))

    def scores(self, images: Images) -> Tensor:
        """Scores (N,) of images (N, C, H, W), in float64 as γ is; higher is more outlying; differentiable.

        The images are floats in [0, 1], or uint8, which is divided by 255; tensors or NumPy arrays. The network is put into eval
        mode. Raises DataError for images of another shape, type or range.
        """
        self.model.eval()
        logits = self.model(self.pixels(images))
        # Apple's GPUs have no float64.
        return self.output_score((logits.cpu() if logits.device.type == "mps" else logits).double())

    def accepts(self, images: Images) -> Tensor:
        """Whether each image is accepted as in-distribution, S(x) ≤ γ: bool (N,); images as in `scores`.

        Raises CheckpointError when the detector has no threshold.
        """
        if self.threshold is None:
            raise CheckpointError("this detector has no threshold γ; calibrate it with `certood evaluate --calibrate`")
        with torch.no_grad():
            return self.scores(images) <= self.threshold

    def pixels(self, images: Images) -> Tensor:
        """Images as in `scores`, as floats in [0, 1] of the network's precision and on its device."""
        pixels = as_pixels(images, self.input_shape)
        weight = next(self.model.parameters(), None)
        return pixels if weight is None else pixels.to(weight.device, weight.dtype)

    def calibrated(
        self,
        images: Images | ImageSource,
        tpr: float | None = None,
        *,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> "Detector":
        """The same detector with the γ that accepts the share `tpr` of these in-distribution images (default: its own `tpr`).

        The images are a set, or as in `scores`. They must be held out: neither trained on nor tested on.
        Raises DataError where a logit is not finite, CertoodError where a share makes no sense.
        """
        share = self.tpr if tpr is None else tpr
        if isinstance(images, Tensor | np.ndarray):
            size = batch_size or forward_batch(self.input_shape, device_of(self.model))
            batches = (self.pixels(part) for part in as_tensor(images).split(size))
            logits = logits_of_batches(self.model, batches, "images")
        else:
            logits = collect_logits(self.model, images, batch_size=batch_size, device=device, progress=progress)
        scores = self.output_score(logits)
        return replace(self, threshold=threshold_at_tpr(scores.numpy(), share), tpr=share)
