"""Opening a file runs nothing, takes no more memory than the file has, and ends in a detector or in one error."""

import json
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from certood.checkpoints import load, load_checkpoint, load_foreign, save_checkpoint
from certood.checkpoints.weights import read_header
from certood.detector import Detector
from certood.errors import ArchitectureError, CertoodError, CheckpointError
from certood.models import build_model
from certood.scores import Energy

USERS_CODE = """
from pathlib import Path
Path("imported").touch()
from torch import nn
def make(num_classes, width=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
def stop(num_classes):
    raise SystemExit("stopped")
def fail(num_classes):
    raise KeyError("no such thing")
"""


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    model = build_model("small-cnn", num_classes=3, input_shape=(1, 8, 8), mean=[0.3], std=[0.4], options={"width": 4})
    return Detector(
        model, Energy(2.0), -1.25, "small-cnn", (1, 8, 8), ("a", "b", "c"), (0.3,), (0.4,), options={"width": 4}
    )


@pytest.fixture
def stored(detector: Detector, tmp_path: Path) -> Path:
    save_checkpoint(detector, tmp_path / "checkpoint.safetensors")
    return tmp_path / "checkpoint.safetensors"


def changed(path: Path, **values: Any) -> Path:
    metadata = json.loads(read_header(path)[1]["certood"]) | values
    save_file(load_file(path), path, {"certood": json.dumps(metadata)})
    return path


@pytest.mark.parametrize("architecture", ["torch.hub:load", "os:system", "pathlib:Path", "their_module:make"])
def test_the_code_that_a_checkpoint_names_is_not_run(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    (tmp_path / "their_module.py").write_text(USERS_CODE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=rf"only if you name it: add --architecture {architecture}"):
        load_checkpoint(changed(stored, architecture=architecture))
    assert not (tmp_path / "imported").exists()
    assert "their_module" not in sys.modules


def test_a_users_own_network_is_read_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_network.py").write_text(USERS_CODE)
    # An example has a module of this name too.
    monkeypatch.delitem(sys.modules, "their_network", raising=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "input_shape": (1, 8, 8)}
    model = build_model("their_network:make", num_classes=2, **names)
    own = Detector(model, Energy(), 0.5, "their_network:make", classes=("a", "b"), **names)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(own, path)
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(load(path, architecture="their_network:make").scores(images), own.scores(images))
    with pytest.raises(CheckpointError, match="holds weights of their_network:make, not of small-cnn"):
        load(path, architecture="small-cnn")
    with pytest.raises(CheckpointError, match=r"input_shape describe foreign weights, .* says that itself"):
        load(path, architecture="their_network:make", input_shape=(1, 8, 8))
    for name, message in (("stop", "SystemExit: stopped"), ("fail", "KeyError")):
        with pytest.raises(ArchitectureError, match=rf"{name}\(num_classes=2, …\) failed \({message}"):
            build_model(f"their_network:{name}", num_classes=2, **names)
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(3)")
    with pytest.raises(ArchitectureError, match="cannot import 'make' of 'leaves'"):
        build_model("leaves:make", num_classes=2, **names)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "weights are never fetched; leave out weights"),
        ("timm:resnet18", {"pretrained": True}, "weights are never fetched; leave out pretrained"),
        ("timm:resnet18", {"pretrained_cfg": "x", "checkpoint_path": "y"}, "leave out checkpoint_path, pretrained_cfg"),
        ("timm:hf-hub:somebody/network", {}, "timm has no network 'hf-hub:somebody/network'"),
        ("timm:local-dir:/tmp", {}, "timm has no network"),
        ("torchvision:maskrcnn_resnet50_fpn", {}, "torchvision has no classifier"),
    ],
)
def test_networks_of_libraries_come_without_a_download(
    stored: Path, architecture: str, options: dict[str, Any], message: str
) -> None:
    if architecture.startswith("timm"):
        pytest.importorskip("timm")
    shape = {"input_shape": [3, 32, 32], "mean": [0.0] * 3, "std": [1.0] * 3}
    with pytest.raises(ArchitectureError, match=message):
        load_checkpoint(changed(stored, architecture=architecture, options=options, **shape))


def test_a_network_of_timm_is_written_and_read(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    names: dict[str, Any] = {"mean": (0.5,), "std": (0.2,), "input_shape": (1, 32, 32)}
    model = build_model("timm:test_convnext", num_classes=3, **names)
    own = Detector(model, Energy(), 0.5, "timm:test_convnext", classes=("a", "b", "c"), **names)
    save_checkpoint(own, tmp_path / "checkpoint.safetensors")
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(load(tmp_path).scores(images), own.scores(images))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("threshold", math.nan, "threshold"),
        ("threshold", math.inf, "threshold"),
        ("threshold", True, "threshold"),
        ("threshold", [1.0], "threshold"),
        ("threshold", "1", "threshold"),
        ("tpr", 2.0, "tpr"),
        ("absent_class", 1, "absent_class"),
        ("classes", 3, "classes"),
        ("classes", [], "classes"),
        ("mean", [math.nan], "mean"),
        ("std", [0.0], "std"),
        ("std", [1.0, 1.0], "1 channels"),
        ("input_shape", [1, 8], "input_shape"),
        ("input_shape", [1, -8, 8], "input_shape"),
        ("input_shape", [1, 10**6, 10**6], "more than"),
        ("options", {"width": 10**12}, "options"),
        ("options", {"width": [1]}, "options"),
        ("score", {"name": "energy", "temperature": math.nan}, "score"),
        ("score", {"name": "energy", "heat": 1.0}, "damaged metadata"),
        ("score", {"name": "enery"}, "did you mean 'energy'"),
        ("score", {}, "unknown score"),
        ("split", {"id": "digits"}, "damaged record of a split"),
        ("extra", 1, "extra"),
        ("schema_version", 99, "newer certood"),
    ],
)
def test_metadata_that_make_no_sense_are_one_error(stored: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(changed(stored, **{key: value}))


def test_deep_metadata_are_one_error(stored: Path) -> None:
    save_file(load_file(stored), stored, {"certood": '{"options":' * 100_000})
    with pytest.raises(CheckpointError, match="damaged metadata"):
        load_checkpoint(stored)


def test_options_that_ask_for_more_than_the_file_holds_take_no_memory(stored: Path) -> None:
    # 10,000 channels three times over would be gigabytes.
    with pytest.raises(CheckpointError, match=r"of another shape: .*instead of \(\d*0000"):
        load_checkpoint(changed(stored, options={"width": 10_000}))


def _packed(path: Path) -> None:
    """The same file with its parts compressed, as an archive that unfolds to any size has them."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


LINEAR = {"weight": torch.ones(3, 64), "bias": torch.zeros(3)}
WEIGHTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "int8": (lambda path: torch.save(LINEAR | {"bias": torch.zeros(3, dtype=torch.int8)}, path), r"torch\.int8 instead"),
    "bool": (lambda path: torch.save(LINEAR | {"bias": torch.zeros(3, dtype=torch.bool)}, path), r"torch\.bool instead"),
    "complex": (lambda path: torch.save(LINEAR | {"bias": torch.zeros(3, dtype=torch.cfloat)}, path), "complex64 instead"),
    "fp8": (
        lambda path: torch.save(LINEAR | {"bias": torch.zeros(3).to(torch.float8_e4m3fn)}, path),
        "float8_e4m3fn instead",
    ),
    "sparse": (lambda path: torch.save(LINEAR | {"weight": torch.eye(3, 64).to_sparse()}, path), "not a dense tensor"),
    "meta": (lambda path: torch.save(LINEAR | {"bias": torch.zeros(3, device="meta")}, path), "not a dense|not a readable"),
    "quantised": (
        lambda path: torch.save(
            LINEAR | {"bias": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}, path
        ),
        "quantised|not a readable|without running code",
    ),
    "expanded": (
        lambda path: torch.save(LINEAR | {"bias": torch.zeros(1).expand(10**12)}, path),
        "1,000,000,000,000 values, but memory of fewer",
    ),
    "compressed": (lambda path: (torch.save(LINEAR, path), _packed(path))[1], "holds compressed parts"),
    "not finite": (lambda path: torch.save(LINEAR | {"bias": torch.full((3,), torch.inf)}, path), "infinite"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_no_ordinary_tensors_are_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linear.py").write_text(
        "from torch import nn\nmake = lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "linear", raising=False)
    path = tmp_path / "weights.pt"
    torch.save({f"1.{name}": value for name, value in LINEAR.items()}, path)
    names: dict[str, Any] = {"classes": 3, "input_shape": (1, 8, 8), "mean": (0.0,), "std": (1.0,)}
    images = torch.rand(2, 1, 8, 8)
    good = load_foreign(path, architecture="linear:make", **names)
    torch.testing.assert_close(good.model(images), images.sum((1, 2, 3))[:, None].expand(2, 3))
    write, message = WEIGHTS[case]
    write(path)
    if case not in ("compressed",):
        loaded = torch.load(path, weights_only=case not in ("quantised",), map_location=None)
        torch.save({f"1.{name}": value for name, value in loaded.items()}, path)
    with pytest.raises(CheckpointError, match=message):
        load_foreign(path, architecture="linear:make", **names)


def test_what_is_missing_is_said_of_a_file_in_pytorchs_format(tmp_path: Path) -> None:
    torch.save(LINEAR, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="say what they are with --architecture, --classes and --input-shape"):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize("threshold", [math.nan, True, [1.0], "1"])
def test_a_threshold_that_is_no_number_is_refused(detector: Detector, threshold: Any) -> None:
    with pytest.raises(CheckpointError, match="expected a threshold γ that is a number"):
        replace(detector, threshold=threshold)


def test_images_mean_the_same_in_every_form(detector: Detector) -> None:
    whole = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    expected = detector.scores(whole / 255)
    for images in (whole, whole.numpy(), (whole / 255).numpy(), (whole.double() / 255).numpy()):
        torch.testing.assert_close(detector.scores(images), expected)
        torch.testing.assert_close(detector.accepts(images), expected <= -1.25)
    limit = detector.calibrated(whole.numpy(), 0.6).threshold
    assert limit == pytest.approx(expected.double().sort().values[2].item(), rel=1e-6)
    for wrong, message in (
        (whole.float(), r"got values in \[.*is divided by 255"),
        (torch.full((2, 1, 8, 8), torch.nan), "got values in"),
        (whole / 255 - 0.1, "got values in"),
        (whole.int(), "floats in .* or as uint8, got torch.int32"),
        (whole[0], r"of shape \(N, 1, 8, 8\), got \(1, 8, 8\)"),
    ):
        for use in (detector.scores, detector.accepts, detector.calibrated):
            with pytest.raises(CertoodError, match=message):
                use(wrong)


def test_a_network_in_train_mode_is_put_into_eval_mode(detector: Detector) -> None:
    images = torch.rand(4, 1, 8, 8)
    before, state = detector.scores(images), {k: v.clone() for k, v in detector.model.state_dict().items()}
    detector.model.train()
    torch.testing.assert_close(detector.scores(images), before)
    assert all(torch.equal(value, state[name]) for name, value in detector.model.state_dict().items())
