"""ReAct and DICE: the numbers of pytorch-ood's own detectors, checkpoints, and certificates of the changed network."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from certood.analysis.bounds import capture
from certood.analysis.certification import certify
from certood.analysis.settings import Settings
from certood.checkpoints import load_checkpoint, save_checkpoint
from certood.cli import main
from certood.data import ImageSet, load_id, to_pixels
from certood.detector import Detector
from certood.errors import ArchitectureError, CertoodError
from certood.models import build_model
from certood.models.classifier import Interface
from certood.models.wrapped import WrappedClassifier
from certood.modifications import MODIFICATIONS, modification_by_name
from certood.runs.identity import detector_identity
from certood.scores import Energy
from tests.quick import first_is_quick

IMAGES = torch.randint(0, 256, (80, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SOURCE = ImageSet("images", IMAGES, torch.arange(80) % 4, tuple("abcd"))


def own(architecture: str = "small-cnn") -> Detector:
    torch.manual_seed(3)
    shape = (3, 32, 32) if architecture.startswith("torchvision") else (1, 8, 8)
    mean, std = (0.4,) * shape[0], (0.3,) * shape[0]
    model = build_model(architecture, num_classes=4, input_shape=shape, mean=mean, std=std)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2)
    return Detector(model, Energy(), None, architecture, shape, tuple("abcd"), mean, std)


def theirs(name: str, detector: Detector) -> torch.Tensor:
    """pytorch-ood's scores of the same images, by its own fit of the same network."""
    detectors = pytest.importorskip("pytorch_ood.detector")
    model = detector.model
    assert isinstance(model.classifier, nn.Linear)
    layer: nn.Linear = model.classifier
    found = {
        "react:percentile=0.8": lambda: detectors.ReAct(model.features, model.head, percentile=0.8),
        "dice:share=0.7": lambda: detectors.DICE(model.features, layer.weight, layer.bias, p=0.7),
    }[name]()
    pixels = to_pixels(IMAGES)
    found.fit(DataLoader(TensorDataset(pixels, SOURCE.labels), batch_size=32))
    return found.predict(pixels).detach().double()


@pytest.mark.parametrize("name", ["react:percentile=0.8", "dice:share=0.7"])
def test_scores_are_those_of_pytorch_ood(name: str) -> None:
    detector = own()
    before = detector.scores(IMAGES)
    changed = modification_by_name(name)(detector, SOURCE)
    torch.testing.assert_close(changed.scores(IMAGES), theirs(name, detector), rtol=1e-5, atol=1e-5)
    assert (changed.scores(IMAGES) - before).abs().max() > 0.01
    torch.testing.assert_close(detector.scores(IMAGES), before)
    assert detector_identity(changed)["sha256"] != detector_identity(detector)["sha256"]


def test_dice_of_no_share_leaves_the_layer_as_it_is() -> None:
    detector = own()
    changed = modification_by_name("dice:share=0")(detector, SOURCE)
    torch.testing.assert_close(changed.scores(IMAGES), detector.scores(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODIFICATIONS.names())
@pytest.mark.parametrize("architecture", ["small-cnn", "small-mlp", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_a_changed_detector_is_stored_opened_and_captured(name: str, architecture: str, tmp_path: Path) -> None:
    changed = modification_by_name(name)(own(architecture), SOURCE)
    save_checkpoint(changed, tmp_path / "checkpoint.safetensors")
    opened = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert detector_identity(opened) == detector_identity(changed)
    torch.testing.assert_close(opened.scores(IMAGES), changed.scores(IMAGES), rtol=0, atol=0)
    capture(opened.model, to_pixels(IMAGES[:1]))  # compares the graph with the module


@pytest.mark.parametrize("name", first_is_quick(["react:percentile=0.5", "dice:share=0.6"]))
def test_certificates_hold_for_the_changed_network(name: str) -> None:
    changed = modification_by_name(name)(own(), SOURCE)
    changed = replace(changed, threshold=changed.scores(IMAGES).median().item())
    pixels = to_pixels(IMAGES[:6])
    eps = 0.02
    records = certify(changed, pixels, kind="id", settings=Settings(eps=(eps,), norm=float("inf")))
    assert changed.threshold is not None
    assert any(record.radius_certified > 0 for record in records)
    generator = torch.Generator().manual_seed(1)
    for image, record in zip(pixels, records, strict=True):
        radius = min(record.radius_certified, eps)
        noise = (2 * torch.rand(300, *image.shape, generator=generator) - 1).sign() * radius
        inside = changed.scores((image + noise).clamp(0, 1)) <= changed.threshold
        assert radius == 0 or bool((inside == record.accepted).all())


def test_a_network_of_torchvision_keeps_its_names() -> None:
    detector = own("torchvision:resnet18")
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    changed = modification_by_name("react")(detector, ImageSet("x", images))
    assert changed.architecture == "react:torchvision:resnet18"
    assert changed.model.state_dict().keys() == detector.model.state_dict().keys()
    with torch.no_grad():
        features = detector.model.features(to_pixels(images))  # type: ignore[operator]
        ceiling = np.quantile(features.double().numpy(), 0.9)
        logits = features.clamp(max=ceiling) @ detector.model.inner.fc.weight.T + detector.model.inner.fc.bias  # type: ignore[union-attr]
        torch.testing.assert_close(changed.model(to_pixels(images)), logits)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reakt", "unknown modification 'reakt'; did you mean 'react'"),
        ("react:percentile=2", "at most 1, got 2.0"),
        ("react:share=0.5", "has no parameter 'share'; expected percentile"),
        ("dice:share=x", "share: input should be a valid number"),
        ("dice:share=1", "below 1, got 1.0"),
    ],
)
def test_a_wrong_modification_is_named(text: str, message: str) -> None:
    with pytest.raises(CertoodError, match=message):
        modification_by_name(text)


def test_what_cannot_be_modified_is_refused() -> None:
    rectified = modification_by_name("react")(own(), SOURCE)
    with pytest.raises(ArchitectureError, match="react:small-cnn: its logits are not one plain linear layer"):
        modification_by_name("dice")(rectified, SOURCE)
    bare = replace(own(), model=nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(ArchitectureError, match="not one plain linear layer"):
        modification_by_name("react")(bare, SOURCE)


class Scaled(nn.Module):
    """Logits that are a multiple of what the last linear layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * self.last(self.body(x))


class Auxiliary(Scaled):
    """Logits of one layer, and after it another one of the same size that is read in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.body(x)
        return self.last(z) + self.other(z) if self.training else self.last(z)


@pytest.mark.parametrize("inner", [Scaled, Auxiliary])
def test_a_network_that_does_not_end_in_its_last_linear_layer_is_refused(inner: type[nn.Module]) -> None:
    network = WrappedClassifier(Interface(4, (1, 8, 8), (0.4,), (0.3,)), inner(), "mine:net").train()
    detector = replace(own(), model=network)
    for name in ("react", "dice"):
        with pytest.raises(ArchitectureError, match="not one plain linear layer of its penultimate features"):
            modification_by_name(name)(detector, SOURCE)
    with pytest.raises(ArchitectureError, match="mine:net: its logits are not the output of its last linear layer"):
        network.features(to_pixels(IMAGES[:2]))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_makes_a_run_that_is_measured_and_certified(tmp_path: Path) -> None:
    short = ("--set", "training.epochs=1", "--set", "model.options.width=4")
    base, out = tmp_path / "base", tmp_path / "react"
    assert run("train", "digits-ce", "--out", base, *short).exit_code == 0
    result = run("modify", base, "react:percentile=0.9", "--out", out)
    assert result.exit_code == 0, result.output
    recipe = tomllib.loads((out / "recipe.toml").read_text())
    assert recipe["modification"]["name"] == "react"
    assert recipe["modification"]["percentile"] == 0.9
    detector = load_checkpoint(out)
    assert detector.threshold is not None
    splits = load_id("digits", root=Path(), recorded=detector.split)
    assert f"{len(splits.validation)} validation images" in result.output
    measured = json.loads((out / "evaluation.json").read_text())
    assert run("evaluate", out).exit_code == 0
    assert json.loads((out / "evaluation.json").read_text()) == measured
    assert f"accuracy {100 * measured['accuracy']:.2f}" in result.output
    assert run("certify", out, "--limit", "2").exit_code == 0
    assert json.loads((out / "certification.json").read_text())["violations"] == 0
    reported = run("report", base, out, "--format", "json")
    assert reported.exit_code == 0, reported.output
    assert {row["run"] for row in json.loads(reported.stdout)["benchmark"]} == {"base", "react"}
    compared = run("compare", base, out)
    assert compared.exit_code == 0, compared.output
    assert "react" in compared.output
    again = run("modify", base, "dice", "--out", out)
    assert again.exit_code == 2
    assert "is not empty" in again.output
    assert run("modify", base, "dice", "--out", out, "--overwrite").exit_code == 0
    assert not (out / "certification.json").exists()
    assert load_checkpoint(out).architecture == "small-cnn"
    assert "is the run that is modified" in run("modify", base, "dice", "--out", base, "--overwrite").output
