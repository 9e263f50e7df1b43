"""Networks and weights from elsewhere: `certood inspect`, `certood certify`, and files that would run code."""

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from certood.cli import main

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, odd=False):
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3, stride=2)
        self.last = nn.Linear(27, num_classes)
        self.odd = odd

    def forward(self, x):
        x = torch.relu(self.convolution(x))
        if self.odd:
            x = torch.floor(x)
        return self.last(x.flatten(1))

def plain(num_classes):
    return Net(num_classes)

def odd(num_classes):
    return Net(num_classes, odd=True)
"""
ABOUT = ("--classes", "6", "--input-shape", "1,8,8", "--mean", "0.3", "--std", "0.4")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebodys_network.py").write_text(FACTORY)
    torch.manual_seed(0)
    model = nn.ModuleDict({"convolution": nn.Conv2d(1, 3, 3, stride=2), "last": nn.Linear(27, 6)})
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_a_foreign_network_is_inspected_and_certified(weights: Path, tmp_path: Path) -> None:
    foreign = ("--architecture", "somebodys_network:plain", *ABOUT)
    result = run("inspect", weights, *foreign)
    assert result.exit_code == 0, result.output
    assert "somebodys_network:plain: 6 classes, images 1×8×8, score energy, γ none" in result.output
    assert "aten.convolution" in result.output or "aten.conv2d" in result.output
    sets = ("--id", "digits", "--ood", "digits-near", "--limit", "2", "--out", tmp_path / "out")
    result = run("certify", weights, *foreign, *sets)
    assert result.exit_code == 0, result.output
    assert "γ = " in result.output
    assert "validation images" in result.output
    assert (tmp_path / "out" / "certification.json").is_file()


def test_an_unsupported_operation_is_named_with_its_place(weights: Path, tmp_path: Path) -> None:
    foreign = ("--architecture", "somebodys_network:odd", *ABOUT)
    line = 1 + FACTORY.splitlines().index("            x = torch.floor(x)")
    result = run("inspect", weights, *foreign)
    assert result.exit_code == 3
    assert "1 of " in result.stderr
    row = next(row for row in result.output.splitlines() if "aten.floor" in row)
    assert "no" in row
    assert f"somebodys_network.py:{line}" in result.output.replace("\n", "")
    assert "aten.relu" in result.output
    sets = ("--id", "digits", "--ood", "digits-near", "--limit", "2", "--out", tmp_path / "out")
    result = run("certify", weights, *foreign, *sets)
    assert result.exit_code == 3
    assert "floor" in result.stderr
    assert f"somebodys_network.py:{line}" in result.stderr
    assert not (tmp_path / "out").exists()


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("command", ["certify", "inspect"])
def test_a_file_that_runs_code_is_refused(command: str, weights: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": _Code()}, tmp_path / "evil.pt")
    result = run(command, tmp_path / "evil.pt", "--architecture", "somebodys_network:plain", *ABOUT)
    assert result.exit_code == 2
    assert "without running code that it carries, which certood refuses" in result.stderr
    assert not (tmp_path / "executed").exists()


def test_what_foreign_weights_need_is_asked_for(weights: Path) -> None:
    result = run("inspect", weights, "--architecture", "somebodys_network:plain")
    assert result.exit_code == 2
    assert "--classes and --input-shape" in result.stderr
    result = run("certify", weights, "--architecture", "somebodys_network:plain", *ABOUT)
    assert result.exit_code == 2
    assert "--id" in result.stderr
