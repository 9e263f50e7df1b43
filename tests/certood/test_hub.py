"""Hugging Face's hub, played by a folder: what is uploaded, what its card says, and the detector that comes back."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import certood
import certood.bridges.hub
from certood.checkpoints import save_checkpoint
from certood.cli import main
from certood.data import IdSplits, ImageSet
from certood.detector import Detector
from certood.errors import CheckpointError, RunDirectoryError
from certood.evaluation import evaluate, write_evaluation
from certood.models import build_model
from certood.runs.identity import detector_identity
from certood.scores import Energy, MaxLogit
from certood.train.loop import fit
from certood.train.recipe import load_recipe

hub = pytest.importorskip("huggingface_hub")


def images(name: str, seed: int, labelled: bool = True) -> ImageSet:
    values = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return ImageSet(name, values, torch.arange(30) % 3 if labelled else None, ("a", "b", "c") if labelled else ())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model("small-cnn", num_classes=3, input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,))
    detector = Detector(model, Energy(), -1.5, "small-cnn", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.5,))
    folder = tmp_path / "run"
    folder.mkdir()
    save_checkpoint(detector, folder / "checkpoint.safetensors")
    splits = IdSplits(images("id", 0), images("id", 1), images("id", 2))
    write_evaluation(
        folder / "evaluation.json", evaluate(detector, splits, {"noise|x": images("noise", 3, False)}, progress=False)
    )
    certification = {
        "norm": "inf",
        "method": "crown",
        "eps": [0.01],
        "violations": 0,
        "score": "energy",
        "threshold": -1.5,
        "settings": {
            "method": "crown",
            "norm": "inf",
            "seed": 0,
            "iterations": 1,
            "parts": 1,
            "dtype": "float64",
            "attack_steps": 1,
            "restarts": 1,
            "samples": 1,
            "smoothing": {"sigma": 0.1, "samples": 1, "confidence": 0.9},
        },
        "sets": {"id": {"kind": "id", "n": 4, "certified_fraction": [0.75], "median_radius_certified": 0.0123}},
        "detector": detector_identity(detector),
    }
    (folder / "certification.json").write_text(json.dumps(certification))
    (folder / "training_state.pt").write_bytes(b"not to be uploaded")
    return folder


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the hub."""
    folder = tmp_path / "hub"

    def create_repo(_: object, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert (private, exist_ok) == (True, True)
        (folder / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(
        _: object, *, repo_id: str, folder_path: str, commit_message: str, delete_patterns: list[str]
    ) -> str:
        assert commit_message
        for name in delete_patterns:
            (folder / repo_id / name).unlink(missing_ok=True)
        shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}"

    def hf_hub_download(repo_id: str, filename: str, revision: str | None = None) -> str:
        if revision == "gone" or not (folder / repo_id / filename).is_file():
            raise OSError("404")
        return str(folder / repo_id / filename)

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)

    def snapshot_download(repo_id: str, revision: str | None = None, *, allow_patterns: list[str]) -> str:
        cached = tmp_path / "cache" / "0123abc"
        shutil.rmtree(cached, ignore_errors=True)
        shutil.copytree(folder / repo_id, cached)
        for path in cached.iterdir():
            if path.name not in allow_patterns:
                path.unlink()
            else:
                path.chmod(0o444)
        cached.chmod(0o555)
        return str(cached)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
    return folder


def test_a_run_is_pushed_and_its_detector_comes_back(run: Path, remote: Path) -> None:
    result = CliRunner().invoke(main, ["push", str(run), "hf:me/mine"])
    assert result.exit_code == 0, result.output
    assert "Pushed: https://hub/me/mine" in result.output
    names = {path.name for path in (remote / "me" / "mine").iterdir()}
    assert names == {"README.md", "checkpoint.safetensors", "evaluation.json", "certification.json"}
    opened, own = certood.load("hf:me/mine@main"), certood.load(run)
    assert detector_identity(opened) == detector_identity(own)
    assert torch.equal(opened.scores(images("x", 5).images), own.scores(images("x", 5).images))


def test_the_card_holds_what_was_measured_and_certified(run: Path, remote: Path) -> None:
    assert CliRunner().invoke(main, ["push", str(run), "hf:me/mine"]).exit_code == 0
    card = (remote / "me" / "mine" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: certood\n")
    assert 'certood.load("hf:me/mine")' in card
    measured: dict[str, Any] = json.loads((run / "evaluation.json").read_text())["scores"]["energy"]["sets"]["noise|x"]
    assert f"| noise\\|x | 30 | {100 * measured['fpr95']:.2f} | {100 * measured['auroc']:.2f} |" in card
    assert "| id | id | 4 | 75 |  | 0.0123 |  |" in card


def changed(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_certification_of_the_run_before_does_not_stay(run: Path, remote: Path) -> None:
    certood.bridges.hub.push(run, "hf:me/mine")
    (run / "certification.json").unlink()
    certood.bridges.hub.push(run, "hf:me/mine")
    assert {path.name for path in (remote / "me" / "mine").iterdir()} == {
        "README.md",
        "checkpoint.safetensors",
        "evaluation.json",
    }


def test_a_certification_of_another_score_is_pushed_and_named(run: Path, remote: Path) -> None:
    detector = certood.load(run)
    other = detector_identity(replace(detector, score=MaxLogit(), threshold=-0.5))
    changed(run / "certification.json", detector=other, score="max-logit", threshold=-0.5)
    certood.bridges.hub.push(run, "hf:me/mine")
    card = (remote / "me" / "mine" / "README.md").read_text("utf-8")
    assert "By crown (score max-logit, γ = -0.5), for balls in linf" in card
    # The same score with another γ is another detector.
    changed(run / "certification.json", detector=detector_identity(replace(detector, threshold=-0.5)))
    with pytest.raises(RunDirectoryError, match=r"certification.json is about another detector .*\(threshold\)"):
        certood.bridges.hub.push(run, "hf:me/mine")


def test_certificates_that_changed_are_not_pushed(run: Path, remote: Path) -> None:
    (run / "certificates.csv").write_text("as made\n")
    changed(run / "certification.json", certificates_sha256=hashlib.sha256(b"as made\n").hexdigest())
    certood.bridges.hub.push(run, "hf:me/mine")
    (run / "certificates.csv").write_text("changed\n")
    with pytest.raises(RunDirectoryError, match=r"certificates.csv has changed since certification.json was written"):
        certood.bridges.hub.push(run, "hf:me/mine")


def test_what_is_smoothed_is_not_called_certified(run: Path, remote: Path) -> None:
    sets = {"id": {"kind": "id", "n": 4, "smoothed_fraction": [0.75], "median_radius_smoothing": 0.0123}}
    changed(run / "certification.json", method="smoothing", norm="2", sets=sets)
    certood.bridges.hub.push(run, "hf:me/mine")
    card = (remote / "me" / "mine" / "README.md").read_text("utf-8")
    assert "## Smoothed (probabilistic)" in card
    assert "holds with probability 0.9" in card
    assert "| id | id | 4 | 75 | 0.0123 |" in card
    assert "ertified" not in card.partition("## Smoothed")[2]
    assert "not sound" not in card
    changed(run / "certification.json", violations=3)
    certood.bridges.hub.push(run, "hf:me/mine")
    card = (remote / "me" / "mine" / "README.md").read_text("utf-8")
    assert "3 inequalities that must hold do not: these radii are not sound" in card


def test_results_of_another_detector_are_refused(run: Path, remote: Path) -> None:
    save_checkpoint(replace(certood.load(run), threshold=-2.0), run / "checkpoint.safetensors")
    with pytest.raises(RunDirectoryError, match=r"evaluation.json is about another detector .*\(threshold\)"):
        certood.bridges.hub.push(run, "hf:me/mine")
    assert not remote.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:mine", "expected hf:OWNER/NAME"),
        ("hf:me/../x", "expected hf:OWNER/NAME"),
        ("hf:me/other", "cannot fetch hf:me/other .*404"),
        ("hf:me/mine@gone", "cannot fetch .*404"),
    ],
)
def test_what_the_hub_does_not_have_is_an_error(name: str, message: str, remote: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        certood.load(name)


def call(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def pushed(tmp_path: Path, undrawn: None, remote: Path) -> Path:
    """A small run of the digits, certified and pushed as hf:me/small; what was fetched of it may not be written to."""
    settings = ["training.epochs=1", "training.steps_per_epoch=2", "run.device=cpu", "model.options.width=2"]
    out = tmp_path / "small"
    fit(load_recipe("digits-ce", settings), out, progress=False)
    call("certify", out, "--limit", "2", "--ood", "digits-near")
    call("push", out, "hf:me/small")
    return out


@pytest.mark.slow
def test_commands_that_read_a_run_read_a_repository(
    pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fetched = tmp_path / "cache" / "0123abc"
    call("evaluate", "hf:me/small@main", "--out", tmp_path / "again.json")
    before = sorted(fetched.iterdir())
    once, again = (json.loads(path.read_text()) for path in (pushed / "evaluation.json", tmp_path / "again.json"))
    assert (again["scores"], again["detector"]) == (once["scores"], once["detector"])
    call("certify", "hf:me/small", "--limit", "2", "--ood", "digits-near", "--out", tmp_path / "certified")
    one, other = (certood.read_certificates(path) for path in ("hf:me/small", tmp_path / "certified"))
    assert [record.radius_certified for record in one] == [record.radius_certified for record in other]
    assert "all" in call("inspect", "hf:me/small").output
    call("report", "hf:me/small", "--format", "csv", "--out", "table.csv")
    assert "hf:me/small" in (tmp_path / "table.csv").read_text("utf-8")
    compared = call("compare", "hf:me/small", pushed, code=2)
    assert "the same recipe with the same seed, which counts once" in compared.output
    assert "small" in call("compare", "hf:me/small", "--json", "compared.json").output
    assert sorted(fetched.iterdir()) == before


@pytest.mark.parametrize("command", ["evaluate", "certify", "export", "report"])
def test_a_repository_is_only_read(command: str, remote: Path) -> None:
    found = call(command, "hf:me/small", code=2)
    assert found.stderr.strip().endswith("hf:me/small is only read: say with --out where the results go")
    assert "Traceback" not in found.output


def test_a_repository_takes_no_threshold_and_may_be_no_run(remote: Path, tmp_path: Path) -> None:
    assert "hf:me/small is only read" in call("evaluate", "hf:me/small", "--calibrate", code=2).stderr
    assert "cannot fetch hf:me/none" in call("inspect", "hf:me/none", code=2).stderr
    (remote / "me" / "other").mkdir(parents=True)
    assert "is no run of certood: expected checkpoint.safetensors" in call("inspect", "hf:me/other", code=2).stderr
