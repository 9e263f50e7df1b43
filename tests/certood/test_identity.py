"""What a result is about: every change of a detector or of images is noticed by whoever reads the result."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from certood.analysis import certify_run, report
from certood.analysis.reporting.runs import read_runs
from certood.analysis.reporting.verdict import verdict
from certood.checkpoints import load_checkpoint, save_checkpoint, stored_identity
from certood.cli import main
from certood.detector import Detector
from certood.models import build_model
from certood.runs import RunDirectory
from certood.runs.identity import OF_THE_NETWORK, detector_identity, differences
from certood.scores import MSP, Energy
from certood.train.loop import fit
from certood.train.recipe import load_recipe

NAMES: dict[str, Any] = {"input_shape": (1, 8, 8), "mean": (0.3,), "std": (0.4,)}
CERTIFY = ("--limit", "2", "--batch-size", "2", "--eps", "0.02", "--ood", "digits-near")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    model = build_model("small-cnn", num_classes=3, options={"width": 4}, **NAMES)
    return Detector(model, Energy(), -1.25, "small-cnn", classes=("a", "b", "c"), options={"width": 4}, **NAMES)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "γ": ({"threshold": -1.2500001}, "threshold"),
    "temperature": ({"score": Energy(5.0)}, "score"),
    "score": ({"score": MSP()}, "score"),
    "classes": ({"classes": ("b", "a", "c")}, "classes"),
    "absent class": ({"classes": ("a", "b"), "absent_class": True}, "absent_class"),
    "normalisation": ({"mean": (0.31,)}, "mean"),
    "options": ({"options": {"width": 5}}, "options"),
    "architecture": ({"architecture": "small-mlp"}, "architecture"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_part_of_a_detector_is_in_its_identity(detector: Detector, name: str) -> None:
    changes, key = CHANGES[name]
    one, other = detector_identity(detector), detector_identity(replace(detector, **changes))
    assert key in differences(one, other)
    assert one["sha256"] != other["sha256"]
    assert one == detector_identity(detector)


def test_one_bit_of_a_weight_and_an_activation_are_in_the_identity(detector: Detector) -> None:
    before = detector_identity(detector)
    weight = next(detector.model.parameters())
    with torch.no_grad():
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    assert differences(before, detector_identity(detector)) == ["weights"]
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 3), activation) for activation in (nn.ReLU(), nn.Tanh())]
    networks[1].load_state_dict(networks[0].state_dict())
    one, other = (detector_identity(replace(detector, model=network)) for network in networks)
    assert differences(one, other) == ["structure"]


def test_the_source_of_a_users_module_is_in_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "their_identity.py"
    network = "nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))"
    path.write_text(f"from torch import nn\ndef make(num_classes):\n    return {network}\n")
    monkeypatch.chdir(tmp_path)
    model = build_model("their_identity:make", num_classes=3, **NAMES)
    own = Detector(model, Energy(), 0.0, "their_identity:make", classes=("a", "b", "c"), **NAMES)
    before = detector_identity(own)
    assert before["source"]
    path.write_text(path.read_text() + "# another activation in forward\n")
    assert differences(before, detector_identity(own)) == ["source"]


def test_a_checkpoint_says_the_same_as_its_detector(detector: Detector, tmp_path: Path) -> None:
    save_checkpoint(detector, tmp_path / "checkpoint.safetensors")
    stored, built = stored_identity(tmp_path), detector_identity(load_checkpoint(tmp_path))
    assert {key: value for key, value in built.items() if key not in (*OF_THE_NETWORK, "sha256")} == stored
    assert built == detector_identity(detector)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("identity") / "run"
    fit(load_recipe("digits-ce", ["training.epochs=2", "run.device=cpu", "model.options.width=4"]), out, progress=False)
    result = run("certify", out, *CERTIFY)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(autouse=True)
def undrawn(finished: Path, undrawn: None) -> None:
    """Figures are drawn once, for the finished run: they take most of the time of a certification."""


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> RunDirectory:
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def page(copy: RunDirectory) -> str:
    return Path(report(copy.folder, copy.folder.parent / "page.html")).read_text("utf-8")


@pytest.mark.slow
def test_an_evaluation_of_another_score_than_the_checkpoints_is_left_out(copy: RunDirectory) -> None:
    """A certification may be about another score; rates of one temperature never stand for a detector of another."""
    detector = load_checkpoint(copy.folder)
    save_checkpoint(replace(detector, score=Energy(temperature=5.0)), copy.checkpoint)
    (read,) = read_runs([copy.folder])
    assert read.evaluation is None
    assert read.certification is not None
    assert read.stale == (
        "evaluation.json is about another detector than the checkpoint (score differ); evaluate it again",
    )


@pytest.mark.slow
def test_a_report_leaves_out_what_is_about_another_checkpoint(copy: RunDirectory) -> None:
    (whole,) = read_runs([copy.folder])
    assert whole.evaluation is not None
    assert whole.certification is not None
    assert not whole.stale
    kept = copy.checkpoint.read_bytes()
    changed = load_checkpoint(copy.folder)
    assert changed.threshold is not None
    save_checkpoint(replace(changed, threshold=changed.threshold + 0.5), copy.checkpoint)
    result = run("report", copy.folder)
    assert result.exit_code == 2
    for name in ("evaluation.json", "certification.json"):
        assert f"{name} is about another detector than the checkpoint (threshold differ)" in result.stderr
    assert run("evaluate", copy.folder).exit_code == 0
    (half,) = read_runs([copy.folder])
    assert half.evaluation is not None
    assert half.certification is None
    assert "certification.json is about another detector" in page(copy)
    result = run("certify", copy.folder, *CERTIFY)
    assert result.exit_code == 2
    assert "other settings (detector.threshold: " in result.stderr
    copy.checkpoint.write_bytes(kept)
    assert run("certify", copy.folder, *CERTIFY).exit_code == 0


def test_results_without_an_identity_are_not_shown_beside_a_checkpoint(copy: RunDirectory) -> None:
    for path in (copy.evaluation, copy.certification):
        content = json.loads(path.read_text())
        del content["detector"]
        path.write_text(json.dumps(content))
    result = run("report", copy.folder)
    assert result.exit_code == 2
    assert "does not say which detector it is about" in result.stderr


def edited(path: Path, name: str, value: str) -> None:
    head, first, *rest = path.read_text().splitlines()
    cells = first.split(",")
    cells[head.split(",").index(name)] = value
    path.write_text("\n".join([head, ",".join(cells), *rest]) + "\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("radius_certified", "0.9"),
        *(
            pytest.param(*edit, marks=pytest.mark.slow)
            for edit in (("accepted", None), ("margin", "7.5"), ("lower@0.02", "99.0"))
        ),
    ],
)
def test_edited_certificates_are_not_believed(copy: RunDirectory, name: str, value: str | None) -> None:
    if value is None:
        head, first, *_ = copy.certificates.read_text().splitlines()
        value = "False" if first.split(",")[head.split(",").index(name)] == "True" else "True"
    edited(copy.certificates, name, value)
    assert "certificates.csv has changed since certification.json was written" in page(copy)
    content = json.loads(copy.certification.read_text())
    del content["certificates_sha256"]
    copy.certification.write_text(json.dumps(content))
    assert "in certificates.csv breaks inequalities that held when it was certified" in page(copy)
    result = run("certify", copy.folder, *CERTIFY)
    assert result.exit_code == 2
    assert "breaks inequalities that held when it was certified" in result.stderr


@pytest.mark.slow
def test_a_killed_overwriting_certification_leaves_the_old_one_and_is_continued(
    copy: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certood.analysis.records import append_certificates

    before = {path: path.read_bytes() for path in (copy.certificates, copy.certification)}
    calls: list[int] = []

    def killed(*arguments: Any) -> None:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        append_certificates(*arguments)

    again = ("certify", copy.folder, *CERTIFY, "--seed", "3")
    with monkeypatch.context() as patch:
        patch.setattr(certify_run, "append_certificates", killed)
        assert run(*again, "--overwrite").exit_code == 130
    assert {path: path.read_bytes() for path in before} == before
    assert run(*again).exit_code == 0
    result = json.loads(copy.certification.read_text())
    assert result["settings"]["seed"] == 3
    whole = copy.folder.parent / "whole"
    assert run(*again, "--out", whole).exit_code == 0
    assert json.loads((whole / "certification.json").read_text())["sets"] == result["sets"]
    assert not [path.name for path in copy.folder.iterdir() if path.name.startswith(".new-")]


def test_an_evaluation_of_less_does_not_replace_one_of_more(copy: RunDirectory) -> None:
    before = copy.evaluation.read_bytes()
    result = run("evaluate", copy.folder, "--score", "energy", "--ood", "digits-near")
    assert result.exit_code == 2
    assert "also has msp, " in result.stderr
    assert "which this command would drop; choose another --out, or --overwrite" in result.stderr
    assert copy.evaluation.read_bytes() == before
    assert run("evaluate", copy.folder).exit_code == 0
    assert json.loads(copy.evaluation.read_text()) == json.loads(before)
    assert run("evaluate", copy.folder, "--score", "energy", "--overwrite").exit_code == 0
    assert list(json.loads(copy.evaluation.read_text())["scores"]) == ["energy"]


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "recipe.toml", "certificates.csv", "figures"])
def test_neither_evaluate_nor_report_writes_over_other_files(copy: RunDirectory, name: str) -> None:
    path = copy.folder / name
    before = path.read_bytes() if path.is_file() else sorted(path.iterdir())
    for arguments in (("evaluate",), ("report",), ("report", "--format", "json"), ("report", "--format", "csv")):
        if name == "certificates.csv" and arguments[-1] == "csv":
            pass
        result = run(arguments[0], copy.folder, *arguments[1:], "--out", path)
        assert result.exit_code == 2, (arguments, result.output)
        assert "choose another --out" in result.stderr or "it is a folder" in result.stderr
        assert (path.read_bytes() if path.is_file() else sorted(path.iterdir())) == before


def test_runs_that_were_measured_on_other_sets_or_scores_are_not_ranked(copy: RunDirectory, finished: Path) -> None:
    def sentences() -> str:
        return " ".join(verdict(read_runs([copy.folder, finished])))

    assert "Lowest mean FPR95" in sentences()
    content = json.loads(copy.evaluation.read_text())
    content["image_sets"]["test"] = "0" * 64
    copy.evaluation.write_text(json.dumps(content))
    found = sentences()
    assert "Lowest mean FPR95" not in found
    assert (
        "The rates of these runs are not ranked: they were measured on different images, or by different scores or methods."
        in found
    )
    assert "detects best" not in found
    assert "Largest median certified radius" in found
    content = json.loads(copy.certification.read_text())
    content["score"] = "msp"
    copy.certification.write_text(json.dumps(content))
    assert "Largest median certified radius" not in sentences()
