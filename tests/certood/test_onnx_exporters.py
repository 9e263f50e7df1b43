"""Networks of torchvision and timm, small ones of their building blocks, from both exporters of PyTorch."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certood.analysis.bounds import LpBall, bound, capture
from certood.onnx import OnnxNetwork, read_onnx

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime, the second opinion on ONNX files, is not installed")
pytest.importorskip("onnxscript", reason="onnxscript, which the default exporter of PyTorch needs, is not installed")


class Windows(nn.Module):
    """Convolutions and poolings whose padding differs before and after, as converted networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 6, 3, groups=3)
        self.slopes, self.last = nn.PReLU(6), nn.Linear(6 * 4, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.hardswish(self.slopes(self.first(nn.functional.pad(images, (0, 1, 0, 1)))))
        hidden = nn.functional.hardsigmoid(self.second(nn.functional.pad(hidden, (1, 1, 1, 1), mode="reflect")))
        pooled = nn.functional.max_pool2d(hidden, 3, 2, 1, ceil_mode=True)
        pooled = nn.functional.avg_pool2d(pooled, 3, 2, 1, count_include_pad=False)
        return self.last(pooled.view(pooled.size(0), -1))


class Shapes(nn.Module):
    """Shapes computed from those of the images, slices, splits, stacked and repeated values, powers, maxima and einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 5)
        self.token, self.table = nn.Parameter(torch.rand(1, 1, 8)), nn.Parameter(torch.rand(5, 8))
        self.register_buffer("places", torch.arange(17) % 5)

    def forward(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        grid = self.embed(images).reshape(batch, 8, (height // 2) * (width // 2)).transpose(1, 2)
        tokens = torch.cat([self.token.expand(batch, -1, -1), grid], dim=1) + self.table[self.places]
        first, second = tokens.chunk(2, dim=-1)
        both = torch.stack([torch.maximum(first, second), (first - second) ** 2], dim=-1).flatten(2)
        turned = torch.roll(both, 1, 2).clamp(min=-0.5)
        weights = torch.einsum("bnc,bmc->bnm", turned, tokens).softmax(-1)
        mixed = torch.where(self.places[:, None] > 2, weights @ tokens, tokens)
        return self.last(mixed[:, 0] + mixed[:, 1::3].mean(1) + mixed.std(1))


class SqueezeAndExcite(nn.Module):
    """A block of EfficientNet, then bilinear interpolation and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.less, self.more, self.last = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.norm(self.conv(images)))
        scale = nn.functional.adaptive_avg_pool2d(hidden, 1)
        hidden = hidden * torch.sigmoid(self.more(nn.functional.silu(self.less(scale))))
        hidden = nn.functional.interpolate(hidden, scale_factor=2.0, mode="bilinear", align_corners=False)
        hidden = nn.functional.gelu(nn.functional.relu6(hidden), approximate="tanh")
        return self.last(hidden.mean((2, 3)))


def resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def mobilenet_v2() -> nn.Module:
    from torchvision.models import MobileNetV2

    return MobileNetV2(5, 0.25, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]])


def mobilenet_v3() -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    blocks = [
        InvertedResidualConfig(8, 3, 16, 8, True, "RE", 2, 1, 1),
        InvertedResidualConfig(8, 5, 24, 8, True, "HS", 1, 1, 1),
    ]
    return MobileNetV3(blocks, 16, num_classes=5)


def efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    return EfficientNet([MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(6, 5, 2, 8, 16, 2)], 0.2, num_classes=5)


def densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(4, (2, 2), 8, num_classes=5)


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], layer_scale=0.5, num_classes=5)


def shufflenet() -> nn.Module:
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 1, 1], [8, 8, 16, 16, 24], num_classes=5)


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)


def swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 8, [2, 1], [2, 2], [4, 4], num_classes=5)


def timm_network(name: str, **options: Any) -> nn.Module:
    models = pytest.importorskip("timm.models", reason="timm is not installed")
    found: nn.Module = getattr(models, name)(num_classes=5, **options)
    return found


SMALL: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "windows": (8, Windows),
    "shapes": (8, Shapes),
    "squeeze and excite": (8, SqueezeAndExcite),
}
NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "resnet": (32, resnet),
    "mobilenet v2": (32, mobilenet_v2),
    "mobilenet v3": (32, mobilenet_v3),
    "efficientnet": (32, efficientnet),
    "densenet": (32, densenet),
    "convnext": (32, convnext),
    "shufflenet": (32, shufflenet),
    "vision transformer": (32, vision_transformer),
    "swin": (32, swin),
    "timm vit": (
        32,
        partial(timm_network, "VisionTransformer", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3),
    ),
    "timm mixer": (32, partial(timm_network, "MlpMixer", img_size=32, patch_size=8, embed_dim=16, num_blocks=1)),
    "timm poolformer": (32, partial(timm_network, "MetaFormer", depths=(1, 1), dims=(8, 16))),
}
BOUNDED = ("densenet", "swin")
# The default exporter takes seconds a network: those whose files, with the small ones, hold all operators of all others.
BY_DYNAMO = ("densenet", "vision transformer", "swin", "timm poolformer")


def network(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with weights and statistics by which every part of it matters: no head of zeros, no standard statistics."""
    torch.manual_seed(0)
    module = build().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.1, 0.1, generator=generator)  # type: ignore[union-attr]
                part.running_var.uniform_(0.1, 0.4, generator=generator)  # type: ignore[union-attr]
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1, generator=generator)
    return module


def export(module: nn.Module, size: int, exporter: str, batch: int, path: Path) -> Path:
    """A file for `batch` images: two stand for any number, one for one alone."""
    images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(2))
    free = batch > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            shapes = ({0: torch.export.Dim("batch")},) if free else None
            torch.onnx.export(module, (images,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        else:
            axes = {"images": {0: "batch"}} if free else None
            torch.onnx.export(module, (images,), path, dynamo=False, input_names=["images"], dynamic_axes=axes)
    return path


def read(build: Callable[[], nn.Module], size: int, exporter: str, batch: int, folder: Path) -> OnnxNetwork:
    """The network of a file, compared with the module of which it was made."""
    module = network(build)
    found = read_onnx(export(module, size, exporter, batch, folder / "network.onnx"))
    assert [line.split(" difference")[0] for line in found.witness] == [
        "onnx.reference: largest relative",
        "onnxruntime: largest relative",
    ]
    images = torch.rand(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs, ours = copy.deepcopy(module).double()(images), copy.deepcopy(found).double()(images)
    assert theirs.abs().max() > 0.01
    # Exporters fold normalisations into convolutions in float32.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    return found


@pytest.mark.parametrize(
    ("name", "exporter", "batch"),
    [
        *((name, "old", batch) for name in SMALL for batch in (1, 2)),
        *(pytest.param(name, "dynamo", 2, marks=pytest.mark.slow) for name in SMALL),
        pytest.param("shapes", "dynamo", 1, marks=pytest.mark.slow),
    ],
)
def test_a_small_network_is_read(name: str, exporter: str, batch: int, tmp_path: Path) -> None:
    size, build = SMALL[name]
    read(build, size, exporter, batch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exporter"), [*((name, "old") for name in NETWORKS), *((name, "dynamo") for name in BY_DYNAMO)]
)
def test_a_published_architecture_is_read(name: str, exporter: str, tmp_path: Path) -> None:
    size, build = NETWORKS[name]
    read(build, size, exporter, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDED)
def test_a_published_architecture_is_bounded(name: str, tmp_path: Path) -> None:
    size, build = NETWORKS[name]
    module = network(build)
    found = read_onnx(export(module, size, "old", 1, tmp_path / "network.onnx"))
    images = torch.rand(1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    bounds, direct = (
        bound(capture(own, images), LpBall(images, eps=1e-8), method="interval") for own in (found, module)
    )
    # Exporters fold normalisations into convolutions in float32.
    slack = 1e-5 * float(direct.upper.abs().max())
    torch.testing.assert_close(bounds.lower, direct.lower, rtol=0, atol=slack)
    torch.testing.assert_close(bounds.upper, direct.upper, rtol=0, atol=slack)
