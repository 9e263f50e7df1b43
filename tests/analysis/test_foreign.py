"""Networks and weights from elsewhere: `certood inspect`, `certood certify`, and files that would run code."""

import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from sklearn.metrics import roc_auc_score
from torch import nn

from certood.cli import main
from certood.data import load_id, load_set, to_pixels

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

def colour(num_classes):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
    return net
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


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ({"--mean", "--std"}, "Without --mean and --std: images enter the network as they are, in [0, 1]"),
        ({"--std"}, "Without --std: images enter the network without that half of a normalisation"),
        (set(), ""),
    ],
)
def test_foreign_weights_without_a_normalisation_are_said_to_have_none(
    weights: Path, left_out: set[str], said: str
) -> None:
    pairs = zip(ABOUT[::2], ABOUT[1::2], strict=True)
    about = [part for pair in pairs if pair[0] not in left_out for part in pair]
    result = run("inspect", weights, "--architecture", "somebodys_network:plain", *about)
    assert result.exit_code == 0, result.output
    assert said in result.stderr
    assert ("Without" in result.stderr) == bool(said)


def without_counters(path: Path) -> nn.Module:
    """The network `colour` with statistics of its own, written as old files have it, without counters of batches."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6))
    with torch.no_grad():
        net(torch.rand(200, 3, 8, 8))
    torch.save({name: part for name, part in net.state_dict().items() if "num_batches" not in name}, path)
    return net.eval()


@pytest.mark.parametrize(
    "named",
    [("digits?colour=rgb", "digits-near?colour=rgb"), ("digits", "digits-near", "--channels", "rgb")],
    ids=["names", "--channels"],
)
def test_foreign_weights_for_colour_are_evaluated_on_grey_sets(named: tuple[str, ...], weights: Path) -> None:
    net = without_counters(weights)
    foreign = ("--architecture", "somebodys_network:colour", "--classes", "6", "--input-shape", "3,8,8")
    result = run("evaluate", weights, *foreign, "--id", named[0], "--ood", *named[1:], "--score", "max-logit")
    assert result.exit_code == 0, result.output
    found = json.loads((weights.parent / "evaluation.json").read_text("utf-8"))
    splits = load_id("digits", root=Path())
    inside, outside = (
        -net(to_pixels(source.batch(torch.arange(len(source)))).expand(-1, 3, -1, -1)).max(1).values.detach().double()
        for source in (splits.test, load_set("digits-near", root=Path()))
    )
    measured = found["scores"]["max-logit"]["sets"]["digits-near?colour=rgb"]
    labels = [0] * len(inside) + [1] * len(outside)
    assert measured["auroc"] == pytest.approx(roc_auc_score(labels, torch.cat([inside, outside])), abs=1e-6)


def test_a_colour_is_for_sets_that_are_named(weights: Path) -> None:
    foreign = ("--architecture", "somebodys_network:plain", *ABOUT)
    result = run("evaluate", weights, *foreign, "--channels", "rgb")
    assert result.exit_code == 2
    assert "add --id, --id-test or --ood" in result.stderr
    result = run("certify", weights, *foreign, "--id", "digits", "--channels", "green")
    assert result.exit_code == 2
    assert "colour is one of grey, rgb, found 'green'" in result.stderr


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


@pytest.mark.parametrize("command", ["certify", "evaluate", "export", "inspect"])
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
