"""Networks: published sizes, normalisation inside, features and head that make the forward pass."""

from pathlib import Path

import pytest
import torch
from torch import nn

from certood.analysis.bounds import LpBall, bound, capture
from certood.errors import ArchitectureError
from certood.models import Classifier, build_model
from certood.models.cifar_resnet import IdentityBlock


def make(name: str, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32), **options: int) -> Classifier:
    return build_model(
        name, num_classes=classes, input_shape=shape, mean=[0.5] * shape[0], std=[0.25] * shape[0], options=options
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("wrn-40-2", 2_243_546),  # 2.2 M in Zagoruyko & Komodakis, table 4
        ("densenet-bc-100-12", 769_162),  # 0.8 M in Huang et al., table 2
        ("resnet20", 269_722),  # 0.27 M in He et al. 2016, table 6
        ("resnet32", 464_154),  # 0.46 M
        ("resnet44", 658_586),  # 0.66 M
        ("resnet56", 853_018),  # 0.85 M
        ("resnet18", 11_173_962),  # 11.17 M in the common 32×32 variant
        ("densenet121", 6_964_106),  # torchvision's 7,978,856 with ten classes instead of a thousand
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    assert sum(part.numel() for part in make(name).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small-cnn", (1, 8, 8)),
        ("small-cnn", (3, 33, 33)),
        ("small-mlp", (1, 28, 28)),
        ("resnet18", (3, 32, 32)),
        ("resnet20", (3, 32, 32)),
        ("resnet32", (1, 28, 28)),
        ("resnet20", (3, 33, 33)),
        ("wrn-40-2", (3, 32, 32)),
        ("densenet-bc-100-12", (3, 32, 32)),
        ("torchvision:mobilenet_v2", (3, 64, 64)),
        ("torchvision:googlenet", (3, 64, 64)),
    ],
)
def test_the_head_of_the_features_is_the_forward_pass(name: str, shape: tuple[int, int, int]) -> None:
    model = make(name, 7, shape).eval()
    images = torch.rand(2, *shape)
    features = model.features(images)
    assert features.ndim == 2
    torch.testing.assert_close(model.head(features), model(images))
    assert model(images).shape == (2, 7)


def test_normalisation_is_inside() -> None:
    torch.manual_seed(0)
    plain = build_model("small-mlp", num_classes=3, input_shape=(1, 4, 4), mean=[0.0], std=[1.0])
    shifted = build_model("small-mlp", num_classes=3, input_shape=(1, 4, 4), mean=[0.3], std=[0.2])
    shifted.load_state_dict(plain.state_dict() | {k: v for k, v in shifted.state_dict().items() if "normalise" in k})
    images = torch.rand(5, 1, 4, 4)
    torch.testing.assert_close(shifted(images), plain((images - 0.3) / 0.2))


def test_a_seed_makes_the_same_network() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(4)
        weights.append(torch.cat([part.flatten() for part in make("small-cnn").parameters()]))
    assert torch.equal(*weights)


FACTORY = """
from torch import nn

def tiny(num_classes, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.ReLU(), nn.Linear(width, num_classes))

def headless(num_classes):
    return nn.Flatten()

def other(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 99))

def text(num_classes):
    return "a network"
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    module = f"user_networks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return module


def test_a_users_factory_is_wrapped(factory: str) -> None:
    model = make(f"{factory}:tiny", 5, (3, 4, 4), width=6).eval()
    images = torch.rand(2, 3, 4, 4)
    assert model.features(images).shape == (2, 6)
    torch.testing.assert_close(model.head(model.features(images)), model(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("headless", "no linear layer to serve as the head"),
        ("other", "has 99 outputs, expected 10"),
        ("text", "returned str, expected a torch.nn.Module"),
        ("absent", "cannot import 'absent'"),
    ],
)
def test_a_users_factory_that_does_not_fit_is_named(factory: str, name: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        make(f"{factory}:{name}", shape=(3, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "smal-cnn"}, "unknown architecture 'smal-cnn'; did you mean 'small-cnn'"),
        ({"name": "torchvision:resnet7"}, "torchvision has no classifier 'resnet7'"),
        ({"name": "torchvision:resnet18", "shape": (1, 32, 32)}, "takes 3 channels, the images have 1"),
        ({"name": "small-cnn", "depth": 3}, "does not take these options"),
        ({"name": "wrn-40-2", "depth": 39}, "depth is 6n"),
        ({"name": "densenet121", "shape": (3, 8, 8)}, "does not take images of shape"),
        ({"name": "no_such_module_here:make"}, "cannot import"),
    ],
)
def test_what_cannot_be_built_is_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        make(**arguments)  # type: ignore[arg-type]


def test_a_normalisation_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="one value per channel"):
        build_model("small-cnn", num_classes=2, input_shape=(3, 8, 8), mean=[0.5], std=[0.5])


def test_batch_normalisation_is_part_of_the_published_networks() -> None:
    assert any(isinstance(part, nn.BatchNorm2d) for part in make("wrn-40-2").modules())


def test_the_shortcut_of_a_cifar_resnet_strides_and_fills_with_zeros() -> None:
    """With both convolutions at zero a block is relu of its shortcut: every second pixel, 8 zero channels on either side."""
    block = IdentityBlock(16, 32, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    found = block(x)
    assert found.shape == (2, 32, 4, 4)
    for channel in range(32):
        expected = x[:, channel - 8, ::2, ::2].relu() if 8 <= channel < 24 else torch.zeros(2, 4, 4)
        assert torch.equal(found[:, channel], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet32"])
def test_cifar_resnets_are_captured_and_bounded(name: str) -> None:
    model = make(name).eval()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    graph = capture(model, images[:1].float())
    found = bound(graph, LpBall(images, 1e-4), method="interval")
    with torch.no_grad():
        logits = model.double()(images)
    assert (found.lower <= logits).all()
    assert (logits <= found.upper).all()
    assert found.upper.isfinite().all()


def test_every_depth_of_a_cifar_resnet_is_6n_plus_2() -> None:
    with pytest.raises(ArchitectureError, match="6n \\+ 2"):
        make("resnet20", depth=21)
