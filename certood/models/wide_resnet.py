"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016)."""

from torch import Tensor, nn
from torch.nn import functional as F

from certood.errors import ArchitectureError
from certood.models.classifier import Classifier, Interface, initialise


class PreActivationBlock(nn.Module):
    """Batch normalisation and ReLU before each of two 3×3 convolutions; a 1×1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if self.same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (N, outputs, H/stride, W/stride)."""
        active = F.relu(self.bn1(x))
        inner = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        summed: Tensor = inner + (x if self.same else self.shortcut(active))
        return summed


class WideResNet(Classifier):
    """WRN-depth-width; WRN-40-2 has 2,243,546 parameters with ten classes."""

    def __init__(self, interface: Interface, depth: int = 40, width: int = 2, dropout: float = 0.0) -> None:
        super().__init__(interface)
        if depth < 10 or (depth - 4) % 6:
            raise ArchitectureError(f"a wide ResNet's depth is 6n + 4 with n ≥ 1 (10, 16, 22, 28, 40 …), got {depth}")
        blocks: list[nn.Module] = []
        inputs = 16
        for stage in range(3):
            outputs = 16 * width * 2**stage
            for index in range((depth - 4) // 6):
                blocks.append(PreActivationBlock(inputs, outputs, 2 if stage and not index else 1, dropout))
                inputs = outputs
        self.conv1 = nn.Conv2d(interface.input_shape[0], 16, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, interface.num_classes)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (N, 64·width) of images (N, C, H, W) in [0, 1]."""
        x = F.relu(self.bn(self.blocks(self.conv1(self.normalise(images)))))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, 64·width)."""
        logits: Tensor = self.classifier(features)
        return logits
