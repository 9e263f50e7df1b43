"""ReAct: features that are cut off at a percentile of those of the training images."""

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from certood.detector import Detector
from certood.errors import CertoodError
from certood.models import build_model
from certood.models.rectified import RECTIFIED
from certood.modifications.base import Modification


@dataclass(frozen=True)
class ReAct(Modification):
    """f(x) = W·min(z(x), c) + b, with c the `percentile` (a share) of all activations of the training images.

    Sun, Guo, Li 2021, "ReAct: Out-of-distribution Detection With Rectified Activations", arXiv 2111.12797, eq. 1.
    """

    percentile: float = 0.9
    name = "react"

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise CertoodError(f"react: expected a percentile above 0 and at most 1, got {self.percentile}")

    def fitted(self, detector: Detector, features: Tensor) -> Detector:
        """The detector whose architecture is `react:` and its own, with the option `ceiling`."""
        options = {**detector.options, "ceiling": float(np.quantile(features.numpy(), self.percentile))}
        architecture = f"{RECTIFIED}:{detector.architecture}"
        network = build_model(
            architecture,
            num_classes=detector.outputs,
            input_shape=detector.input_shape,
            mean=detector.mean,
            std=detector.std,
            options=options,
        )
        network.load_state_dict(detector.model.state_dict())
        return replace(detector, model=network, architecture=architecture, options=options)
