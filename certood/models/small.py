"""Small networks that can be certified tightly."""

import math

from torch import nn

from certood.models.classifier import BodyAndClassifier, Interface, initialise


class SmallCNN(BodyAndClassifier):
    """Two strided 3×3 convolutions and two linear layers with ReLU; images from 4×4 pixels on.

    `width` is the number of channels of the first convolution (the second has twice as many), `hidden` that of features.
    """

    def __init__(self, interface: Interface, width: int = 16, hidden: int = 64) -> None:
        super().__init__(interface)
        channels, height, rest = interface.input_shape
        plane = math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(rest / 2) / 2)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * plane, hidden),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(hidden, interface.num_classes)
        initialise(self)


class StridedCNN(BodyAndClassifier):
    """Two strided 4×4 convolutions, a 3×3 one, average pooling and two linear layers with ReLU; images from 8×8 pixels on.

    `width` is the number of channels of the first convolution (the others have twice as many), `hidden` that of features.
    Large kernels, large strides and few layers keep intervals narrow: the network of guards.
    """

    def __init__(self, interface: Interface, width: int = 48, hidden: int = 128) -> None:
        super().__init__(interface)
        channels, height, rest = interface.input_shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (height // 2 // 2 // 2) * (rest // 2 // 2 // 2), hidden),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(hidden, interface.num_classes)
        initialise(self)


class SmallMLP(BodyAndClassifier):
    """Linear layers with ReLU: `depth` hidden layers of `width` units."""

    def __init__(self, interface: Interface, width: int = 256, depth: int = 2) -> None:
        super().__init__(interface)
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = math.prod(interface.input_shape)
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, interface.num_classes)
        initialise(self)
