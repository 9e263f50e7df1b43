"""Checkpoints: weights in safetensors with JSON metadata, never pickle; and the detector that they hold."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certood.errors import CheckpointError
from certood.scores import Score


@dataclass(frozen=True)
class Detector:
    """An OOD detector: a network in eval mode, a score of its logits, and the threshold γ that accepts.

    `input_shape` is (C, H, W) in pixels; `mean` and `std` are the network's own normalisation, for the record;
    `options` are those with which the architecture was built.
    """

    model: nn.Module
    score: Score
    threshold: float | None
    architecture: str
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: dict[str, int | float | str | bool]
    absent_class: bool = False
    tpr: float = 0.95

    def scores(self, images: Tensor) -> Tensor:
        """Scores (N,) of images (N, C, H, W) in [0, 1]; higher is more outlying."""
        with torch.no_grad():
            return self.score(self.model(images))

    def accepts(self, images: Tensor) -> Tensor:
        """Whether each image is accepted as in-distribution, S(x) ≤ γ: bool (N,).

        Raises CheckpointError when the detector has no threshold.
        """
        if self.threshold is None:
            raise CheckpointError("this detector has no threshold γ; run `certood evaluate --calibrate` first")
        return self.scores(images) <= self.threshold
