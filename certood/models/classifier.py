"""What a network is to the rest of the package: pixels in, normalisation inside, features and head apart."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """(x − mean) / std per channel, for images x in [0, 1] of shape (N, C, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W)."""
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """A network from pixels to logits: `head(features(x))`, normalisation being the first step of `features`.

    Subclasses define `features(images)`: (N, C, H, W) in [0, 1] to penultimate features (N, F); and `head(features)`:
    (N, F) to logits (N, K). `input_shape` is (C, H, W) in pixels.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = input_shape

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (N, F) of images (N, C, H, W) in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} must define features(images)")

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, F)."""
        raise NotImplementedError(f"{type(self).__name__} must define head(features)")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.head(self.features(images))
