"""DenseNet-BC for 32×32 images (Huang et al., CVPR 2017)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.errors import ArchitectureError
from certood.models.classifier import Classifier, Interface, initialise


class DenseLayer(nn.Module):
    """A 1×1 bottleneck and a 3×3 convolution whose output is joined to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (N, inputs + growth, H, W)."""
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([x, new], 1)


class Transition(nn.Module):
    """A 1×1 convolution that halves the channels, and average pooling that halves the plane."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (N, outputs, H/2, W/2)."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNetBC(Classifier):
    """DenseNet-BC-depth-growth with reduction ½; DenseNet-BC-100-12 has 769,162 parameters with ten classes."""

    def __init__(self, interface: Interface, depth: int = 100, growth: int = 12) -> None:
        super().__init__(interface)
        if depth < 10 or (depth - 4) % 6:
            raise ArchitectureError(f"a DenseNet-BC's depth is 6n + 4 with n ≥ 1 (10, 16, 22, 40, 100 …), got {depth}")
        channels = 2 * growth
        self.conv1 = nn.Conv2d(interface.input_shape[0], channels, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        for stage in range(3):
            for _ in range((depth - 4) // 6):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            if stage < 2:
                layers.append(Transition(channels, channels // 2))
                channels //= 2
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, interface.num_classes)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (N, F) of images (N, C, H, W) in [0, 1]."""
        x = F.relu(self.bn(self.layers(self.conv1(self.normalise(images)))))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, F)."""
        logits: Tensor = self.classifier(features)
        return logits
