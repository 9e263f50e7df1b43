"""Published weights, where they lie beside the project: they load, and reach the accuracy that is known of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from certood.checkpoints import load
from certood.models import build_model
from certood.models.foreign_weights import renamed

SHARED = Path(__file__).parents[3] / "shared"


def _unpacker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unpack_data", SHARED / "tools" / "unpack_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _test_images(name: str, step: int) -> tuple[Tensor, Tensor]:
    """Every `step`-th test image (N, 3, 32, 32) in [0, 1], and its label; the file is ordered by class."""
    arrays = _unpacker().unpack(name, False)
    images = torch.from_numpy(np.ascontiguousarray(arrays["images"][::step].transpose(0, 3, 1, 2)))
    return images / 255, torch.from_numpy(arrays["labels"][::step])


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "images", "architecture", "normalisation", "accuracy"),
    [
        # On all 10,000 images: 81.0 %, 80.4 %, 48.4 %.
        ("resnet20_cifar10", "cifar10_test", "resnet20", IMAGENET, 0.810),
        ("densenet_bc_100_12_cifar10", "cifar10_test", "densenet-bc-100-12", {}, 0.804),
        ("densenet_bc_100_12_cifar100", "cifar100_test", "densenet-bc-100-12", {}, 0.484),
    ],
)
def test_published_weights_reach_their_accuracy(
    weights: str, images: str, architecture: str, normalisation: dict[str, tuple[float, ...]], accuracy: float
) -> None:
    path, data = SHARED / "weights" / f"{weights}.safetensors", SHARED / "data" / f"{images}.npz"
    for needed in (path, data):
        if not needed.is_file():
            pytest.skip(f"{needed} is not here; it may not be part of the project")
    detector = load(
        path,
        architecture=architecture,
        classes=100 if "cifar100" in images else 10,
        input_shape=(3, 32, 32),
        mean=normalisation.get("mean"),
        std=normalisation.get("std"),
    )
    pixels, labels = _test_images(images, 20 if architecture == "resnet20" else 100)
    with torch.no_grad():
        predicted = torch.cat([detector.model(part).argmax(1) for part in pixels.split(200)])
    found = (predicted == labels).double().mean().item()
    # Three standard deviations of a share of so many images.
    assert abs(found - accuracy) < 3 * (accuracy * (1 - accuracy) / len(labels)) ** 0.5, found


def test_names_of_foreign_weights_follow_the_stated_rules() -> None:
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10, input_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.2] * 3)
    own = model.state_dict()
    bare = {name: value + 1 for name, value in own.items() if "tracked" not in name and "normalise" not in name}
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod."):
        found = renamed({prefix + name: value for name, value in bare.items()}, model)
        assert found.keys() == own.keys()
        assert all(torch.equal(found[name], value) for name, value in bare.items())
        assert found["layer1.0.bn1.num_batches_tracked"] == 0
        assert torch.equal(found["normalise.mean"], own["normalise.mean"])
    # A prefix that only some names have stays.
    assert "module.conv1.weight" in renamed(
        {"module.conv1.weight": bare["conv1.weight"], "bn1.bias": bare["bn1.bias"]}, model
    )
