"""A detector of certood as one of pytorch-ood's; importing this needs pytorch-ood."""

from collections.abc import Iterable
from typing import Self

import torch
from pytorch_ood.api import Detector as PytorchOODDetector
from torch import Tensor

from certood.detector import Detector


class CertoodDetector(PytorchOODDetector):  # type: ignore[misc]
    """pytorch-ood's interface to a detector: `predict` gives its scores, higher for outliers, and `fit` its γ.

    Images (N, C, H, W) are floats in [0, 1], not normalised: normalisation is part of the network. `detector` is the one with
    the γ of the last `fit`.
    """

    requires_fit = False

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.model = detector.model

    def fit(self, data_loader: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """γ from held-out ID images in batches (images, labels); images whose label is below 0 are outliers, and left out."""
        parts = [images[labels >= 0] for images, labels in data_loader]
        self.detector = self.detector.calibrated(torch.cat(parts))
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Scores (N,) of images (N, C, H, W)."""
        with torch.no_grad():
            return self.detector.scores(x)
