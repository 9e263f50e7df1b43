"""Guarded detectors: their score is its formula, the classifier stays as it is, and a checkpoint holds both networks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from certood.checkpoints import load_checkpoint, save_checkpoint, stored_identity
from certood.detector import Detector
from certood.errors import ArchitectureError, CertoodError, CheckpointError
from certood.evaluation import measured_scores
from certood.models import build_model
from certood.models.catalogue import build_guard
from certood.models.guarded import GuardDescription, GuardedNetwork
from certood.runs.identity import OF_THE_NETWORK, detector_identity, differences
from certood.scores import MSP, AbsentClass, Energy, Score, score_by_name, score_of_description
from certood.scores.guarded import Guarded, fitted

NAMES: dict[str, Any] = {"input_shape": (1, 8, 8), "mean": (0.3,), "std": (0.4,)}
DESCRIPTION = GuardDescription("small-mlp", (0.5,), (0.2,), {"width": 6, "depth": 1})
SCORE = Guarded("energy:temperature=2.0", alpha=1.5, sigma=0.4, centre=-1.0, width=0.3)


@pytest.fixture
def base() -> Detector:
    torch.manual_seed(0)
    model = build_model("small-cnn", num_classes=3, options={"width": 4}, **NAMES)
    return Detector(model, Energy(2.0), -1.25, "small-cnn", classes=("a", "b", "c"), options={"width": 4}, **NAMES)


def guarded(base: Detector, score: Score = SCORE) -> Detector:
    torch.manual_seed(1)
    network = GuardedNetwork(base.model, build_guard(DESCRIPTION, base.input_shape))
    return replace(base, model=network, score=score, threshold=0.7, guard=DESCRIPTION)


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def formula(logits: np.ndarray[Any, Any], guard: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    energy = -2 * np.log(np.exp(logits / 2).sum(1))
    found: np.ndarray[Any, Any] = -guard / 0.4 + 1.5 / (1 + np.exp(-(energy + 1.0) / 0.3))
    return found


def test_the_score_is_its_formula_and_the_classifier_is_untouched_bit_for_bit(base: Detector) -> None:
    detector, x = guarded(base), images()
    with torch.no_grad():
        outputs, logits, f = detector.model(x), base.model(x), detector.model.get_submodule("guard")(x)
        assert torch.equal(outputs[:, :-1], logits)
        assert torch.equal(outputs[:, -1:], f)
        np.testing.assert_allclose(
            detector.scores(x).numpy(), formula(logits.double().numpy(), f[:, 0].double().numpy()), rtol=1e-5
        )
        for score in (Energy(), MSP(), Energy(2.0)):
            of_both, of_one = (replace(one, score=score).scores(x) for one in (detector, base))
            assert torch.equal(of_both, of_one)


def test_more_outlying_by_either_network_is_a_higher_score() -> None:
    outputs = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 1.0], [0.5, 0.0, 2.0]])
    usual, guard_says, classifier_says = Guarded()(outputs).tolist()
    assert guard_says > usual
    assert classifier_says > usual


@pytest.mark.parametrize("score", ["energy", "absent-class"])
def test_an_absent_class_enters_only_where_the_base_score_reads_it(base: Detector, score: str) -> None:
    detector = replace(guarded(base, Guarded(score)), classes=("a", "b"), absent_class=True)
    outputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    expected = score_by_name(score)(outputs[:, :3] if score == "absent-class" else outputs[:, :2])
    found = detector.output_score(outputs)
    torch.testing.assert_close(found, torch.sigmoid(expected) - outputs[:, 3])
    torch.testing.assert_close(detector.reading(AbsentClass())(outputs), outputs[:, :3].softmax(1)[:, 2])
    # No guard is mistaken for an absent class.
    with pytest.raises(CertoodError, match="needs a network trained with an absent class"):
        guarded(base).reading(AbsentClass())


def test_what_is_no_guarded_detector_has_no_guarded_score(base: Detector) -> None:
    with pytest.raises(CertoodError, match="needs a detector with a guard, as `certood train --guard-of` makes it"):
        base.reading(Guarded())
    with pytest.raises(CertoodError, match="the whole of a guarded detector was asked for"):
        base.bounded_part(whole=True)
    with pytest.raises(CertoodError, match="expected a network with a base and a guard, got SmallCNN"):
        replace(guarded(base), model=base.model).bounded_part()
    with pytest.raises(CertoodError, match="expected the score of a classifier as base"):
        Guarded("guarded")
    for wrong in ({"alpha": -1.0}, {"sigma": 0.0}, {"width": 0.0}):
        with pytest.raises(CertoodError, match="expected alpha >= 0, sigma > 0 and width > 0"):
            Guarded(**wrong)


def test_texts_and_records_name_the_score_and_leave_the_rest_to_the_detector() -> None:
    assert score_of_description(SCORE.description) == SCORE
    assert SCORE.label == "guarded:alpha=1.5"
    assert score_by_name(SCORE.label, SCORE) == SCORE
    assert score_by_name("guarded:alpha=3", SCORE) == replace(SCORE, alpha=3.0)
    # A foreign constant would be measured under the detector's own name.
    with pytest.raises(CertoodError, match=r"'base' of score 'guarded' is the detector's, 'energy:.*': only alpha"):
        score_by_name("guarded:base=msp", SCORE)
    assert score_by_name(f"guarded:sigma={SCORE.sigma}", SCORE) == SCORE
    assert replace(SCORE, alpha=1.23456789).label == "guarded:alpha=1.23456789"
    assert score_by_name("energy", SCORE) == Energy()
    assert score_by_name("energy:temperature=3", Energy(2.0)) == Energy(3.0)
    assert score_by_name("energy", Energy(2.0)) == Energy()


def test_the_own_score_is_measured_beside_those_of_the_classifier(base: Detector) -> None:
    names = [score.name for score in measured_scores(guarded(base))]
    assert names == ["guarded", *(score.name for score in measured_scores(base))]


def test_constants_are_those_of_validation_images() -> None:
    generator = torch.Generator().manual_seed(4)
    guard, energies = 3 * torch.randn(1000, generator=generator), torch.randn(1000, generator=generator) - 9
    score = fitted(Energy(2.0), 0.5, guard, energies, (0.5, 0.95))
    assert score.base == "energy:temperature=2.0"
    assert score.alpha == 0.5
    assert score.sigma == pytest.approx(np.std(guard.numpy(), ddof=1), rel=1e-5)
    low, high = np.quantile(energies.numpy(), [0.5, 0.95])
    assert score.squashed(torch.tensor(high)).item() == pytest.approx(0.5, abs=1e-4)
    assert score.squashed(torch.tensor(low)).item() == pytest.approx(0.01, rel=1e-3)
    for constant in ((torch.ones(9), energies), (guard, torch.ones(9))):
        with pytest.raises(CertoodError, match="do not vary"):
            fitted(Energy(), 0.5, *constant, (0.5, 0.95))


def test_a_guarded_detector_survives_being_written_and_read(base: Detector, tmp_path: Path) -> None:
    detector = guarded(base)
    save_checkpoint(detector, tmp_path / "checkpoint.safetensors")
    loaded = load_checkpoint(tmp_path)
    torch.testing.assert_close(loaded.scores(images()), detector.scores(images()), rtol=0, atol=0)
    assert replace(loaded, model=detector.model) == detector
    assert detector_identity(loaded) == detector_identity(detector)
    built = {key: value for key, value in detector_identity(loaded).items() if key not in (*OF_THE_NETWORK, "sha256")}
    assert built == stored_identity(tmp_path)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "alpha": ({"score": replace(SCORE, alpha=1.25)}, "score"),
    "centre": ({"score": replace(SCORE, centre=-1.5)}, "score"),
    "base score": ({"score": replace(SCORE, base="energy")}, "score"),
    "guard's options": ({"guard": replace(DESCRIPTION, options={"width": 7})}, "guard"),
    "guard's normalisation": ({"guard": replace(DESCRIPTION, mean=(0.51,))}, "guard"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_part_of_a_guard_is_in_the_identity(base: Detector, name: str) -> None:
    changes, key = CHANGES[name]
    one, other = detector_identity(guarded(base)), detector_identity(replace(guarded(base), **changes))
    assert differences(one, other) == [key]
    assert one["sha256"] != other["sha256"]


@pytest.mark.parametrize("part", ["base", "guard"])
def test_one_weight_of_either_network_is_in_the_identity(base: Detector, part: str) -> None:
    detector = guarded(base)
    before = detector_identity(detector)
    with torch.no_grad():
        next(detector.model.get_submodule(part).parameters()).view(-1)[0] += 1
    assert differences(before, detector_identity(detector)) == ["weights"]


def test_reading_the_score_changes_no_identity(base: Detector) -> None:
    detector = guarded(base)
    before = detector_identity(detector)
    detector.scores(images())
    assert detector_identity(detector) == before


def edited(path: Path, **changes: Any) -> None:
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["certood"])
    save_file(weights, path, {"certood": json.dumps(metadata | changes)})


def test_a_damaged_guard_and_code_that_a_file_names_are_refused(base: Detector, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    (tmp_path / "their_guard.py").write_text("raise SystemExit('code of a file was run')\n")
    plain: dict[str, Any] = {
        "architecture": "small-mlp",
        "options": {"width": 6, "depth": 1},
        "mean": [0.5],
        "std": [0.2],
    }
    for changes, error, message in (
        ({"guard": None}, CheckpointError, "reads a guard, and there is none"),
        ({"guard": plain | {"mean": [0.5, 0.5]}}, CheckpointError, "1 channels, but mean"),
        ({"guard": plain | {"std": [0.0]}}, CheckpointError, "guard.std"),
        ({"guard": plain | {"options": {"width": 7, "depth": 1}}}, CheckpointError, "of another shape"),
        ({"guard": plain | {"architecture": "their_guard:make"}}, ArchitectureError, "a guard is a built-in network"),
    ):
        save_checkpoint(guarded(base), path)
        load_checkpoint(path)
        edited(path, **changes)
        with pytest.raises(error, match=message):
            load_checkpoint(path)
