"""`certood certify` on a network of the user's own code, whose activation is then changed."""

import os
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from certood.checkpoints import save_checkpoint
from certood.cli import main
from certood.detector import Detector
from certood.models import build_model
from certood.scores import Energy

KNOWN = {"input_shape": (1, 8, 8), "mean": (0.5,), "std": (0.25,)}
CERTIFY = ("--architecture", "their_activation:make", "--id", "digits", "--ood", "digits-near", "--limit", "1")
SOURCE = """\
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, num_classes))
"""


@pytest.fixture
def own(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a network made by their_activation.py, which lies beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "their_activation", raising=False)
    Path("their_activation.py").write_text(SOURCE)
    torch.manual_seed(0)
    detector = Detector(
        build_model("their_activation:make", num_classes=10, **KNOWN),
        Energy(),
        -2.4,
        "their_activation:make",
        classes=tuple("0123456789"),
        **KNOWN,
    )
    save_checkpoint(detector, tmp_path / "checkpoint.safetensors")
    return tmp_path / "checkpoint.safetensors"


def certify(checkpoint: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["certify", str(checkpoint), *CERTIFY, *options])


def use_another(activation: str) -> None:
    path = Path("their_activation.py")
    path.write_text(SOURCE.replace("ReLU", activation))
    # The bytecode of a file is taken as long as its size and second are the same.
    os.utime(path, (0, 0))
    # The next command is another process.
    del sys.modules["their_activation"]


@pytest.mark.slow
def test_certificates_are_not_continued_with_another_activation(own: Path) -> None:
    """The weights are the same, so that only the network says what the radii are of."""
    assert certify(own, "--out", "found").exit_code == 0
    before = Path("found/certificates.csv").read_bytes()
    use_another("Tanh")
    result = certify(own, "--out", "found")
    assert result.exit_code == 2
    assert "other settings (detector.source differs; detector.structure differs)" in result.stderr
    assert Path("found/certificates.csv").read_bytes() == before


@pytest.mark.slow
def test_parts_are_an_error_for_a_network_without_activations(own: Path) -> None:
    assert certify(own, "--parts", "2", "--out", "split").exit_code == 0
    use_another("Identity")
    result = certify(own, "--parts", "2", "--out", "whole")
    assert result.exit_code == 2
    assert "parts and timeout say nothing of this network: it has no elementwise activation" in result.stderr
    assert not Path("whole").exists()
    assert certify(own, "--out", "whole").exit_code == 0
