"""What a modification is: from a detector and the features of its training images to another detector."""

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from certood.checkpoints.onnx_file import ONNX_ARCHITECTURE
from certood.data.source import ImageSource
from certood.detector import Detector
from certood.errors import ArchitectureError
from certood.inference import collect_logits
from certood.models.classifier import Classifier
from certood.models.rectified import last_layer


class Modification(ABC):
    """A change of a network that is fitted on features of in-distribution training images; a frozen dataclass.

    What comes out is a detector like any other, with the same score: it is stored, measured, and certified by the bounds of
    the network that it has now.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name on the command line."""

    @abstractmethod
    def fitted(self, detector: Detector, features: Tensor) -> Detector:
        """The changed detector, given features (N, F) in float64; its γ is left to the caller."""

    @property
    def description(self) -> dict[str, Any]:
        """Parameters and name, as recipe.toml records them."""
        return {"name": self.name, **{field.name: getattr(self, field.name) for field in fields(self)}}  # type: ignore[arg-type]

    def __call__(
        self, detector: Detector, images: ImageSource, *, device: torch.device | str = "cpu", progress: bool = False
    ) -> Detector:
        """The changed detector, without γ, fitted on training images; the detector itself stays as it is.

        Raises ArchitectureError for a detector with a guard, an ONNX file, and a network without a plain linear last layer.
        """
        if detector.guard is not None:
            raise ArchitectureError(
                "a detector with a guard is not modified; modify the one that is guarded, and guard that"
            )
        if detector.architecture == ONNX_ARCHITECTURE:
            raise ArchitectureError("the network of an ONNX file is not modified; name its weights with --architecture")
        last_layer(detector.model, detector.architecture)
        features = collect_logits(_Features(detector.model.to(device)), images, device=device, progress=progress)
        changed = self.fitted(detector, features)
        return replace(changed, model=changed.model.to(device), threshold=None)


class _Features(nn.Module):
    """The penultimate features of a classifier as a network of their own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, F) of images (N, C, H, W) in [0, 1]."""
        assert isinstance(self.network, Classifier)
        return self.network.features(images)
