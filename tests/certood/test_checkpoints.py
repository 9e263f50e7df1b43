"""Checkpoints: what is written comes back; what is foreign, damaged or dangerous is refused by name."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from certood.checkpoints import load, load_checkpoint, load_foreign, save_checkpoint
from certood.detector import Detector
from certood.errors import CertoodError, CheckpointError
from certood.models import build_model
from certood.scores import AbsentClass, Energy


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    model = build_model(
        "small-cnn", num_classes=3, input_shape=(1, 8, 8), mean=[0.3], std=[0.4], options={"width": 4}
    ).eval()
    return Detector(
        model, Energy(2.0), -1.25, "small-cnn", (1, 8, 8), ("a", "b", "c"), (0.3,), (0.4,), options={"width": 4}
    )


def test_a_detector_survives_being_written_and_read(detector: Detector, tmp_path: Path) -> None:
    save_checkpoint(detector, tmp_path / "checkpoint.safetensors")
    images = torch.rand(5, 1, 8, 8)
    for path in (tmp_path, tmp_path / "checkpoint.safetensors"):
        loaded = load_checkpoint(path)
        torch.testing.assert_close(loaded.scores(images), detector.scores(images), rtol=0, atol=0)
        assert replace(loaded, model=detector.model) == detector
        assert not loaded.model.training
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_accepting_compares_with_the_threshold_inclusively(detector: Detector) -> None:
    images = torch.rand(4, 1, 8, 8)
    scores = detector.scores(images).detach()
    exact = replace(detector, threshold=scores[1].item())
    assert torch.equal(exact.accepts(images), scores <= scores[1])
    with pytest.raises(CheckpointError, match="no threshold γ; calibrate it"):
        replace(detector, threshold=None).accepts(images)


def test_an_absent_class_is_ignored_by_the_other_scores(detector: Detector) -> None:
    images = torch.rand(4, 1, 8, 8)
    logits = detector.model(images)
    absent = replace(detector, absent_class=True, classes=("a", "b"))
    torch.testing.assert_close(absent.scores(images), Energy(2.0)(logits[:, :2].double()))
    torch.testing.assert_close(replace(absent, score=AbsentClass()).scores(images), logits.double().softmax(1)[:, 2])


def test_missing_truncated_and_foreign_files_are_told_apart(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="it is no run directory"):
        load_checkpoint(tmp_path)
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(CheckpointError, match="its training has not ended; continue with --resume"):
        load_checkpoint(tmp_path)
    (tmp_path / "certification_settings.json").touch()
    with pytest.raises(CheckpointError, match="a certification alone; name the run, or the file, that was certified"):
        load_checkpoint(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(detector, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="may be truncated"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not written by certood: say what it holds with --architecture"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(2)}, path, {"certood": "{"})
    with pytest.raises(CheckpointError, match="damaged metadata"):
        load_checkpoint(path)


def foreign(path: Path) -> Detector:
    return load_foreign(
        path, architecture="torchvision:resnet18", classes=4, input_shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3
    )


@pytest.fixture
def resnet() -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet18(num_classes=4).eval()
    return model


@pytest.mark.parametrize("shape", ["bare", "state_dict", "model", "parallel", "safetensors"])
def test_somebody_elses_weights_give_their_logits(resnet: nn.Module, tmp_path: Path, shape: str) -> None:
    weights = dict(resnet.state_dict())
    path = tmp_path / "weights.pt"
    match shape:
        case "bare":
            torch.save(weights, path)
        case "parallel":
            torch.save({f"module.{name}": value for name, value in weights.items()}, path)
        case "safetensors":
            path = tmp_path / "weights.safetensors"
            save_file(weights, path)
        case _:
            torch.save({shape: weights, "epoch": 3}, path)
    images = torch.rand(2, 3, 32, 32)
    loaded = foreign(path)
    assert loaded.threshold is None
    torch.testing.assert_close(loaded.model(images), resnet((images - 0.5) / 0.2))


def test_a_normalisation_in_the_file_is_what_the_detector_says(detector: Detector, tmp_path: Path) -> None:
    """Weights of ours without their metadata: no other mean or std is believed, and none need be given."""
    path = tmp_path / "bare.pt"
    torch.save(detector.model.state_dict(), path)
    held = {"mean": detector.mean, "std": detector.std}
    named = {"architecture": detector.architecture, "classes": 3, "input_shape": detector.input_shape}
    for given in ({}, held):
        loaded = load(path, **named, **given, options=detector.options)
        assert (loaded.mean, loaded.std) == (detector.mean, detector.std)
    rounded = {"mean": (round(detector.mean[0] + 4e-5, 6),), "std": (round(detector.std[0] - 4e-5, 6),)}
    loaded = load(path, **named, **rounded, options=detector.options)
    assert (loaded.mean, loaded.std) == (detector.mean, detector.std)
    with pytest.raises(CheckpointError, match="holds a normalisation of its own with mean"):
        load(path, **named, **held | {"mean": (detector.mean[0] + 6e-5,)}, options=detector.options)
    with pytest.raises(CheckpointError, match="holds a normalisation of its own with mean"):
        load(path, **named, **held | {"mean": (0.9,)}, options=detector.options)
    with pytest.raises(CheckpointError, match="holds a normalisation of its own with std"):
        load(path, **named, **held | {"std": (0.9,)}, options=detector.options)


class Dangerous:
    """A pickle that would run code when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of the checkpoint ran')",)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Dangerous()}, path)
    with pytest.raises(CheckpointError, match="without running code that it carries"):
        foreign(path)
    path.write_bytes(b"xxxx")
    with pytest.raises(CheckpointError, match="not a readable PyTorch file"):
        foreign(path)
    path.write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(CheckpointError, match=r"without running code|not a readable"):
        foreign(path)


def test_weights_that_do_not_fit_are_listed(resnet: nn.Module, tmp_path: Path) -> None:
    weights = dict(resnet.state_dict())
    path = tmp_path / "w.pt"
    torch.save({name: value for name, value in weights.items() if "layer4" not in name}, path)
    with pytest.raises(CheckpointError, match=r"missing: inner.layer4.* and \d+ more"):
        foreign(path)
    torch.save(weights | {"extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected: inner.extra"):
        foreign(path)
    torch.save(weights | {"fc.bias": torch.zeros(9)}, path)
    with pytest.raises(CheckpointError, match=r"inner.fc.bias \(9,\) instead of \(4,\)"):
        foreign(path)
    torch.save(weights | {"fc.bias": torch.full((4,), torch.nan)}, path)
    with pytest.raises(CheckpointError, match=r"not a number: inner.fc.bias"):
        foreign(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        foreign(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CheckpointError, match=r"truncated|refuses"):
        foreign(path)


def test_onnx_without_its_extra_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CheckpointError, match=r"pip install 'certood\[onnx\]'"):
        load(tmp_path / "net.onnx")


def test_an_unwritable_place_is_named(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(CertoodError, match="cannot write"):
        save_checkpoint(detector, tmp_path / "no" / "such" / "checkpoint.safetensors")
