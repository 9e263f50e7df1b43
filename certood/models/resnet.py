"""ResNet-18 with the stem for 32×32 images (He et al., CVPR 2016; 3×3 stem without pooling)."""

from torch import Tensor, nn
from torch.nn import functional as F

from certood.models.classifier import Classifier, Interface, initialise


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch normalisation, beside a shortcut (1×1 where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Activations (N, outputs, H/stride, W/stride)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet18(Classifier):
    """11,173,962 parameters with ten classes; `width` is that of the first stage (64 as published)."""

    def __init__(self, interface: Interface, width: int = 64) -> None:
        super().__init__(interface)
        self.conv1 = nn.Conv2d(interface.input_shape[0], width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            blocks += [BasicBlock(inputs, outputs, 1 if stage == 0 else 2), BasicBlock(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, interface.num_classes)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (N, 8·width) of images (N, C, H, W) in [0, 1]."""
        x = F.relu(self.bn1(self.conv1(self.normalise(images))))
        return F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, 8·width)."""
        logits: Tensor = self.classifier(features)
        return logits
