"""Training guards: from a recipe and a trained detector to one detector; resuming; bad input before anything is trained."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from certood.checkpoints import load, load_checkpoint, save_checkpoint
from certood.cli import main
from certood.detector import Detector
from certood.errors import ArchitectureError, CertoodError, CheckpointError, DataError, RecipeError, RunDirectoryError
from certood.inference import collect_logits
from certood.models import build_model
from certood.runs import RunDirectory, load_run_data
from certood.runs.identity import detector_identity
from certood.scores import Energy
from certood.scores.guarded import Guarded
from certood.train import loop
from certood.train.continuing import inputs_of_finished
from certood.train.guarding import fingerprint
from certood.train.loop import fit
from certood.train.recipe import Recipe, load_recipe
from certood.train.study import require_trainable

pytestmark = pytest.mark.usefixtures("undrawn")

TINY = ["training.epochs=2", "training.steps_per_epoch=3", "run.device=cpu", "model.options.width=4"]
SHORT = [*TINY, "model.options.hidden=8", "certified.start=0", "certified.ramp=1", "optimiser.warmup=0"]
SHORT += ["optimiser.decay_start=0"]
CERTIFY = ("--limit", "2", "--batch-size", "2", "--eps", "0.02", "--ood", "digits-near")


def recipe(of: Path, *settings: str) -> Recipe:
    return load_recipe("digits-guard", [*SHORT, f"guard.of={of}", *settings])


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def settings(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("guards") / "base"
    fit(load_recipe("digits-energy", TINY), out, progress=False)
    return out


@pytest.fixture(scope="module")
def finished(base: Path) -> Path:
    out = base.parent / "guarded"
    result = run("train", "digits-guard", "--guard-of", base, "--out", out, *settings(SHORT))
    assert result.exit_code == 0, result.output
    return out


def test_a_run_joins_the_guard_and_the_detector_and_fixes_constants_on_validation_images(
    base: Path, finished: Path
) -> None:
    one, both = load_checkpoint(base), load_checkpoint(finished)
    score = both.score
    assert isinstance(score, Guarded)
    assert score.alpha == load_recipe("digits-guard").guard.alpha  # type: ignore[union-attr]
    splits, _ = load_run_data(finished, recorded=both.split)
    assert both.split == one.split
    outputs = collect_logits(both.model, splits.validation)
    # The classifier is the one that was given, bit for bit.
    assert torch.equal(outputs[:, :-1], collect_logits(one.model, splits.validation))
    assert score.sigma == pytest.approx(np.std(outputs[:, -1].numpy(), ddof=1), rel=1e-5)
    energies = one.output_score(outputs[:, :-1]).numpy()
    assert score.centre == pytest.approx(np.quantile(energies, 0.95), rel=1e-5)
    scores = both.output_score(outputs).numpy()
    assert (scores <= both.threshold).mean() >= 0.95  # type: ignore[operator]
    assert (scores < both.threshold).mean() < 0.95  # type: ignore[operator]
    accuracies = [json.loads(RunDirectory(path).evaluation.read_text())["accuracy"] for path in (base, finished)]
    assert accuracies[0] == accuracies[1]
    rows = list(csv.DictReader(RunDirectory(finished).training.open()))
    assert [float(row["cross_entropy"]) for row in rows] == [0, 0]
    assert all(math.isnan(float(row["accuracy"])) and float(row["outlier"]) > 0 for row in rows)


def test_another_threshold_is_the_same_detector_to_guard(base: Path) -> None:
    detector = load_checkpoint(base)
    own = fingerprint(detector)
    assert fingerprint(replace(detector, threshold=1.0, tpr=0.5)) == own
    assert fingerprint(replace(detector, score=Energy(temperature=2.0))) != own


@pytest.mark.slow
def test_every_command_takes_a_guarded_run(finished: Path) -> None:
    result = run("inspect", finished)
    assert result.exit_code == 0, result.output
    assert "guarded by small-cnn; it alone is bounded" in result.output
    alone = result.output.count("aten.")
    result = run("inspect", finished, "--bound-base")
    assert "it and small-cnn are bounded" in result.output
    assert result.output.count("aten.") > alone
    result = run("evaluate", finished, "--score", "guarded:alpha=0", "--score", "guarded", "--out", finished / "x.json")
    assert result.exit_code == 0, result.output
    assert set(json.loads((finished / "x.json").read_text())["scores"]) == {"guarded:alpha=0", "guarded:alpha=2"}
    result = run("certify", finished, *CERTIFY)
    assert result.exit_code == 0, result.output
    certification = json.loads(RunDirectory(finished).certification.read_text())
    assert certification["violations"] == 0
    assert certification["global_lipschitz"] is None
    assert certification["score"] == "guarded:alpha=2"
    assert all(part["median_lipschitz_certified"] == [None] for part in certification["sets"].values())
    # What is there belongs to these bounds.
    result = run("certify", finished, *CERTIFY, "--bound-base")
    assert result.exit_code == 2
    assert "other settings (bound_base: False there, True here)" in result.stderr
    result = run("report", finished)
    assert result.exit_code == 0, result.output
    assert "guarded:alpha=2" in RunDirectory(finished).report.read_text("utf-8")


@pytest.mark.slow
def test_gamma_is_calibrated_again_for_another_alpha(finished: Path) -> None:
    result = run("certify", finished, *CERTIFY, "--score", "guarded:alpha=0.5", "--out", finished.parent / "half")
    assert result.exit_code == 0, result.output
    assert "for score guarded:alpha=0.5: accepts 95%" in result.output
    half = json.loads((finished.parent / "half" / "certification.json").read_text())
    assert half["detector"]["score"]["sigma"] == load_checkpoint(finished).score.parameters["sigma"]


@pytest.mark.slow
def test_a_resumed_guard_is_that_of_an_uninterrupted_run(
    base: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loop.train_epoch

    def killed(training: Any, shown: Any) -> dict[str, Any]:
        if training.epochs_done == 1:
            raise KeyboardInterrupt
        return whole(training, shown)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe(base), tmp_path / "run", progress=False)
    resumed = fit(recipe(base), tmp_path / "run", resume=True, progress=False)
    assert detector_identity(resumed) == detector_identity(load_checkpoint(finished))
    # γ of the guarded detector does not enter, everything else does.
    changed = load_checkpoint(base)
    copied = tmp_path / "base.safetensors"
    save_checkpoint(changed, copied)
    out = tmp_path / "copied"
    fit(recipe(copied), out, progress=False)
    save_checkpoint(replace(changed, threshold=0.0), copied)
    fit(recipe(copied), out, resume=True, progress=False)
    save_checkpoint(replace(changed, score=Energy(2.0)), copied)
    with pytest.raises(RunDirectoryError, match=r"^guarded-detector is not for what is to be trained"):
        require_trainable({"guard": recipe(copied)}, inputs_of_finished([(out, recipe(copied))]))
    with pytest.raises(RunDirectoryError, match="guarded-detector has changed since"):
        fit(recipe(copied), out, resume=True, progress=False)


@pytest.mark.slow
def test_foreign_weights_are_guarded(base: Path, tmp_path: Path) -> None:
    own = load_checkpoint(base)
    weights = tmp_path / "theirs.pt"
    torch.save(own.model.state_dict(), weights)
    described = ["--architecture", "small-cnn", "--classes", "6", "--input-shape", "1,8,8"]
    described += ["--mean", f"{own.mean[0]}", "--std", f"{own.std[0]}"]
    # Foreign weights come without options: width 16 and hidden 64.
    torch.manual_seed(0)
    model = build_model("small-cnn", num_classes=6, input_shape=(1, 8, 8), mean=own.mean, std=own.std)
    torch.save(model.state_dict(), weights)
    out = tmp_path / "run"
    result = run("train", "digits-guard", "--guard-of", weights, *described, "--out", out, *settings(SHORT))
    assert result.exit_code == 0, result.output
    both, x = load(out), torch.rand(4, 1, 8, 8)
    assert both.threshold is not None
    assert torch.equal(both.model(x)[:, :6], model.eval()(x))
    assert run("certify", out, *CERTIFY).exit_code == 0


WRONG: dict[str, tuple[list[str], type[CertoodError], str]] = {
    "no detector": (["guard.of="], RecipeError, "name the detector that it guards with --guard-of RUN"),
    "no file": (["guard.of=nowhere"], CheckpointError, "no checkpoint .*nowhere"),
    "another shape": (["data.size=12"], ArchitectureError, r"takes images of shape \(1, 12, 12\).*takes \(1, 8, 8\)"),
    "no outliers": (["data.auxiliary="], RecipeError, "needs data.auxiliary"),
    "a radius out of range": (["certified.eps=1.5"], RecipeError, "eps is in pixels"),
    "a long ramp": (["certified.ramp=5"], RecipeError, "shorten the ramp"),
    "a classifier": (["objective.name=energy"], RecipeError, r"trains a classifier, and table \[guard\]"),
    "quantiles": (["guard.low=0.95"], RecipeError, "expected low < high"),
    "negative weight": (["guard.alpha=-1"], RecipeError, "greater than or equal to 0"),
    "own code": (["model.architecture=their:guard"], ArchitectureError, "a guard is a built-in network"),
    "descriptions of a run": (["guard.classes=6"], CheckpointError, "describe foreign weights"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_error_before_anything_is_trained(name: str, base: Path, tmp_path: Path) -> None:
    changes, error, message = WRONG[name]
    options = [value for value in SHORT if not (name == "own code" and value.startswith("model."))]
    with pytest.raises(error, match=message):
        fit(load_recipe("digits-guard", [*options, f"guard.of={base}", *changes]), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_only_fitting_detectors_are_guarded(base: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has a guard already"):
        fit(recipe(finished), tmp_path / "run", progress=False)
    one = load_checkpoint(base)
    path = tmp_path / "other.safetensors"
    save_checkpoint(replace(one, classes=("a", "b", "c", "d", "e", "f")), path)
    with pytest.raises(DataError, match="must have the classes of"):
        fit(recipe(path), tmp_path / "run", progress=False)
    # The split of the detector is taken over, whatever the recipe's seed says.
    assert load_checkpoint(base).split == one.split
    other = fit(recipe(base, "data.split_seed=3"), tmp_path / "seed", progress=False)
    assert other.split == one.split
    result = run("train", "digits-ce", "--classes", "6")
    assert result.exit_code == 2
    assert "describe what --guard-of names" in result.stderr
    result = run("train", "digits-ce", "--guard-of", base)
    assert result.exit_code == 2
    assert "trains a classifier, and table [guard] (--guard-of)" in result.stderr


@pytest.mark.slow
def test_a_detector_of_the_users_code_is_opened_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_guarded.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    named: dict[str, Any] = {"input_shape": (1, 8, 8), "mean": (0.3,), "std": (0.4,)}
    model = build_model("their_guarded:make", num_classes=6, **named)
    classes = tuple("012345")
    save_checkpoint(
        Detector(model, Energy(), None, "their_guarded:make", classes=classes, **named), tmp_path / "a.safetensors"
    )
    with pytest.raises(CheckpointError, match="runs only if you name it"):
        fit(recipe(tmp_path / "a.safetensors"), tmp_path / "run", progress=False)
    both = fit(
        recipe(tmp_path / "a.safetensors", "guard.architecture=their_guarded:make"), tmp_path / "run", progress=False
    )
    assert both.guard is not None
    with pytest.raises(CheckpointError, match="runs only if you name it"):
        load(tmp_path / "run")
    again = load(tmp_path / "run", architecture="their_guarded:make")
    assert detector_identity(again) == detector_identity(both)
