"""Networks whose layers are 1-Lipschitz in l2 by construction, so that margin over constant certifies every image."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from certood.errors import ArchitectureError
from certood.models.classifier import BodyAndClassifier, Classifier, Interface


class LipschitzCNN(BodyAndClassifier):
    """Two convolutions of 2×2 blocks that do not overlap and two linear layers, orthogonal, with |·| between them.

    `width` is the number of channels of the first convolution (the second has twice as many), `hidden` that of features;
    logits are `scale` times those of the 1-Lipschitz network. While it trains, the layers are those of deel-torchlip
    (`constrained`; Serrurier et al., CVPR 2021, arXiv 2006.06520), which hold their weights near orthogonal ones. What is stored
    has plain convolutions and matrices, and no promise: constants are computed of the stored weights. Raises
    ArchitectureError where deel-torchlip is missing, or images have sides that 4 does not divide.
    """

    def __init__(
        self,
        interface: Interface,
        width: int = 16,
        hidden: int = 64,
        scale: float = 10.0,
        constrained: bool = True,
    ) -> None:
        super().__init__(interface)
        channels, height, rest = interface.input_shape
        if height % 4 or rest % 4:
            raise ArchitectureError(
                f"lipschitz-cnn takes images whose sides 4 divides, got {height}×{rest}; use data.size"
            )
        convolution, linear = _constrained_layers() if constrained else (nn.Conv2d, nn.Linear)
        self.options: dict[str, Any] = {"width": width, "hidden": hidden, "scale": scale}
        self.body = nn.Sequential(
            convolution(channels, width, 2, stride=2),
            Absolute(),
            convolution(width, 2 * width, 2, stride=2),
            Absolute(),
            nn.Flatten(),
            linear(2 * width * (height // 4) * (rest // 4), hidden),
            Absolute(),
        )
        self.classifier = linear(hidden, interface.num_classes)
        self.scale = scale

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, hidden), times the scale."""
        return self.scale * super().head(features)

    def stored(self) -> tuple[Classifier, Mapping[str, Any]]:
        """The same function of plain convolutions and matrices."""
        plain = LipschitzCNN(self.interface, **self.options, constrained=False)
        with torch.no_grad():
            for own, other in zip([*self.body, self.classifier], [*plain.body, plain.classifier], strict=True):
                for name, value in other.named_parameters():
                    value.copy_(getattr(own, name))
        like = self.classifier.bias
        return plain.to(like).train(self.training), {"constrained": False}


class Absolute(nn.Module):
    """|x|, which keeps distances to 0 and the norms of gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """The absolute values."""
        return x.abs()


def _constrained_layers() -> tuple[Any, Any]:
    """The convolution and the matrix of deel-torchlip."""
    try:
        from deel.torchlip import SpectralConv2d, SpectralLinear  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise ArchitectureError(
            "lipschitz-cnn is trained with the layers of deel-torchlip: pip install 'certood[lipschitz]'"
        ) from error
    return SpectralConv2d, SpectralLinear
