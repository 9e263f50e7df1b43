"""An ONNX file as a detector: its network, a normalisation before it if wanted, and a score."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from certood.detector import Detector
from certood.errors import CheckpointError
from certood.models.classifier import Classifier, Interface
from certood.onnx import OnnxNetwork, read_onnx
from certood.scores import Energy, Score

ONNX_SUFFIX = ".onnx"
ONNX_ARCHITECTURE = "onnx"


class OnnxClassifier(Classifier):
    """The network of an ONNX file behind a normalisation; it has no features apart from its logits.

    The file's own normalisation stays in it; `mean` and `std` are applied before, a number per channel.
    """

    def __init__(self, network: OnnxNetwork, mean: Sequence[float], std: Sequence[float]) -> None:
        channels = network.image_shape[0]
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise CheckpointError(
                f"mean and std need one value per channel, std above 0: {channels} channels, mean {tuple(mean)}, std {tuple(std)}"
            )
        super().__init__(Interface(network.outputs, network.image_shape, tuple(mean), tuple(std)))
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.network(self.normalise(images))
        return logits


def is_onnx(path: Path | str) -> bool:
    """Whether a file is one of ONNX, by its name."""
    return Path(path).suffix.lower() == ONNX_SUFFIX


def load_onnx(
    path: Path | str,
    *,
    architecture: str | None = None,
    classes: int | tuple[str, ...] | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    score: Score | None = None,
    device: torch.device | str = "cpu",
) -> Detector:
    """The detector of an ONNX file, without a threshold; the score is energy unless given.

    The number of classes and the shape (C, H, W) of images are read from the file and only checked where they are given;
    files that take images of any size, or flat ones such as (N, 784), need `input_shape`. `mean` and `std` are applied before
    the network (default: none). Raises CheckpointError as `read_onnx` does, and where what is given does not suit the file.
    """
    path = Path(path)
    if architecture not in (None, ONNX_ARCHITECTURE):
        raise CheckpointError(f"{path} holds its network; leave the architecture ({architecture}) out")
    network = read_onnx(path, input_shape=input_shape)
    names = (
        classes
        if isinstance(classes, tuple)
        else tuple(map(str, range(network.outputs if classes is None else classes)))
    )
    if len(names) != network.outputs:
        raise CheckpointError(f"{path} gives {network.outputs} logits, but {len(names)} classes were given")
    channels = network.image_shape[0]
    mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
    return Detector(
        model=OnnxClassifier(network, mean, std).to(device).eval(),
        score=score or Energy(),
        threshold=None,
        architecture=ONNX_ARCHITECTURE,
        input_shape=network.image_shape,
        classes=names,
        mean=mean,
        std=std,
        options={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    )
