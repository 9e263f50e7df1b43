"""Initial weights for certified training."""

import math

from torch import nn


def initialise_for_bounds(model: nn.Module) -> None:
    """Weights from N(0, √(2π)/fan_in), biases zero (Shi et al., NeurIPS 2021, arXiv 2103.17268, section 3.3).

    With the usual initialisations the width of intervals grows with every layer, by a factor of about √fan_in; with this one
    it stays as it is.
    """
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(part.weight, std=math.sqrt(2 * math.pi) / part.weight[0].numel())
            if part.bias is not None:
                nn.init.zeros_(part.bias)
