"""ResNet-20, 32, 44, 56 for CIFAR (He et al., CVPR 2016, arXiv 1512.03385, section 4.2)."""

from torch import Tensor, nn
from torch.nn import functional as F

from certood.errors import ArchitectureError
from certood.models.classifier import Classifier, Interface, initialise


class IdentityBlock(nn.Module):
    """Two 3×3 convolutions with batch normalisation beside an identity shortcut without weights.

    Where the stage changes, the shortcut takes every second row and column and fills the new channels with zeros, half
    before and half after those of the input (option A of the paper).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Activations (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(inner + x)


class CifarResNet(Classifier):
    """ResNet of `depth` 6n + 2 with stages of 16, 32 and 64 channels.

    ResNet-20 has 269,722 parameters with ten classes. The names of its weights are those in which most published
    ones are stored: conv1, bn1, layer1 to layer3, linear.
    """

    def __init__(self, interface: Interface, depth: int = 20) -> None:
        super().__init__(interface)
        if depth < 8 or (depth - 2) % 6:
            raise ArchitectureError(
                f"a CIFAR ResNet's depth is 6n + 2 with n ≥ 1 (8, 14, 20, 32, 44, 56 …), got {depth}"
            )
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(interface.input_shape[0], 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, interface.num_classes)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (N, 64) of images (N, C, H, W) in [0, 1]."""
        x = F.relu(self.bn1(self.conv1(self.normalise(images))))
        return F.adaptive_avg_pool2d(self.layer3(self.layer2(self.layer1(x))), 1).flatten(1)

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, 64)."""
        logits: Tensor = self.linear(features)
        return logits


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = IdentityBlock(inputs, outputs, 1 if inputs == outputs else 2)
    return nn.Sequential(first, *(IdentityBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
