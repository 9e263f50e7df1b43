"""What a network is to the rest of the package: pixels in, normalisation inside, features and head apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Interface:
    """What goes in and out of a network: outputs K, images (C, H, W) in pixels, normalisation per channel."""

    num_classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Classifier(nn.Module):
    """A network from pixels to logits: `head(features(x))`, normalisation being the first step of `features`.

    Subclasses define `features(images)`: (N, C, H, W) in [0, 1] to penultimate features (N, F); and `head(features)`:
    (N, F) to logits (N, K).
    """

    def __init__(self, interface: Interface) -> None:
        super().__init__()
        self.interface = interface
        self.normalise = Normalise(interface.mean, interface.std)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel that the weights have, which may be others than it was built with."""
        mean, std = (
            tuple(float(f"{value:.7g}") for value in part.flatten().tolist())
            for part in (self.normalise.mean, self.normalise.std)
        )
        return mean, std

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (N, F) of images (N, C, H, W) in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} must define features(images)")

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, F)."""
        raise NotImplementedError(f"{type(self).__name__} must define head(features)")

    def stored(self) -> "tuple[Classifier, Mapping[str, Any]]":
        """The network as it is stored and certified, and the options of the architecture that differ from its own."""
        return self, {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.head(self.features(images))


class BodyAndClassifier(Classifier):
    """A classifier that is one module `body` of normalised images, and one linear layer `classifier` of its features (N, F)."""

    body: nn.Sequential
    classifier: nn.Linear

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (N, F) of images (N, C, H, W) in [0, 1]."""
        features: Tensor = self.body(self.normalise(images))
        return features

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, F)."""
        logits: Tensor = self.classifier(features)
        return logits


def initialise(module: nn.Module) -> None:
    """He initialisation of convolutions (fan-out) and linear layers' zero bias, as the published networks have it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
