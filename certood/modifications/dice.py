"""DICE: a last layer of which only the weights that contribute most are left."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certood.detector import Detector
from certood.errors import CertoodError
from certood.models.rectified import last_layer
from certood.modifications.base import Modification


@dataclass(frozen=True)
class DICE(Modification):
    """f(x) = (M ⊙ W)·z(x) + b: the `share` of weights with the least mean contribution W_kj·E[z_j] is masked out.

    Sun, Li 2022, "DICE: Leveraging Sparsification for Out-of-Distribution Detection", arXiv 2111.09805, eq. 4.
    """

    share: float = 0.9
    name = "dice"

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise CertoodError(f"dice: expected a share of at least 0 and below 1, got {self.share}")

    def fitted(self, detector: Detector, features: Tensor) -> Detector:
        """The same architecture, with zeros in its last layer."""
        network = deepcopy(detector.model)
        _, layer = last_layer(network, detector.architecture)
        contribution = layer.weight.detach().double().cpu() * features.mean(0)
        # All up to the quantile, as the authors do; a share of 0 leaves the layer as it is.
        count = math.floor(self.share * (contribution.numel() - 1)) + 1 if self.share else 0
        least = contribution.flatten().argsort(stable=True)[:count]
        kept = torch.ones(contribution.numel(), dtype=torch.bool)
        kept[least] = False
        with torch.no_grad():
            layer.weight.mul_(kept.view_as(contribution).to(layer.weight.device))
        return replace(detector, model=network)
