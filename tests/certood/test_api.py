"""The Python façade: as short as the command line, imported late, and with errors that name what is expected."""

import importlib
import math
import pydoc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import certood
from certood.analysis import certify_run
from certood.errors import CannotCertify, CertoodError, CheckpointError, RecipeError
from certood.models import build_model
from certood.scores import MSP

SHAPE = {"input_shape": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model("small-mlp", num_classes=3, input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,)).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_the_facade_takes_no_torch_until_it_is_used() -> None:
    code = (
        "import sys, certood\n"
        "certood.train.fit, certood.analysis.report, certood.certify\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "certood.load\n"
        "assert 'torch' in sys.modules and 'matplotlib' not in sys.modules\n"
        "assert set(certood.__all__) <= set(dir(certood))\n"
        "try:\n    certood.nothing\nexcept AttributeError as error:\n    assert 'nothing' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "names"), [("certood", ["load", "certify"]), ("certood.analysis", ["certify", "report", "compare"])]
)
def test_pydoc_shows_what_there_is(module: str, names: list[str]) -> None:
    # What `python -m pydoc` prints, without its bold letters.
    page = pydoc.plain(pydoc.render_doc(importlib.import_module(module)))
    for name in names:
        assert f"\n    {name}(" in page
    assert "in pixels" in page


def test_foreign_weights_are_calibrated_and_certified_from_arrays(weights: Path) -> None:
    detector = certood.load(weights, architecture="small-mlp", classes=3, score=MSP(), **SHAPE)
    assert isinstance(detector, certood.Detector)
    assert (detector.threshold, detector.classes, detector.score) == (None, ("0", "1", "2"), MSP())
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    images = torch.from_numpy(pixels).float() / 255
    with pytest.raises(CannotCertify, match="no threshold"):
        certood.certify(detector, images)
    detector = detector.calibrated(images[4:], tpr=0.5)
    scores = detector.scores(images).detach()
    assert detector.threshold == scores[4:].sort().values[7]
    assert detector.accepts(images[4:]).sum() == 8
    assert detector.tpr == 0.5

    records = certood.certify(detector, images[:4], eps=0.01)
    assert [record.accepted for record in records] == detector.accepts(images[:4]).tolist()
    np.testing.assert_allclose([record.score for record in records], scores[:4], rtol=1e-5)
    assert all(record.radius_certified <= record.radius_attack for record in records)
    # Bytes are the same images.
    again = certood.certify(detector, pixels[:4], eps=(0.01,))
    np.testing.assert_allclose(
        [record.radius_certified for record in again], [record.radius_certified for record in records], rtol=1e-4
    )
    # As outliers, exactly the others are decided rightly.
    outside = certood.certify(detector, images[:4], kind="ood", eps=0.01, norm=2, attack_steps=2)
    assert [record.radius_certified > 0 for record in outside] == [not record.accepted for record in records]


def test_a_run_is_trained_loaded_certified_and_reported_in_four_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Figures of single runs are tested elsewhere, and take most of the time.
    monkeypatch.setattr(certify_run, "draw_figures", lambda *_: [])
    run = tmp_path / "run"
    settings = ["training.epochs=1", "run.device=cpu", "data.ood=['digits-photo']"]
    trained = certood.train.fit("digits-ce", run, settings=settings, progress=False)
    assert certood.load(str(run)).threshold == trained.threshold
    records = certood.certify(run, eps=0.01, limit=1)
    assert [(record.set, record.kind) for record in records] == [("digits", "id"), ("digits-photo", "ood")]
    # What is certified already is read, not done again.
    assert certood.certify(run, eps=0.01, limit=1)[0].seconds == records[0].seconds
    assert "digits-photo" in certood.analysis.report(run, format="csv")


def test_bad_calls_say_what_is_expected(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="`classes` and `input_shape` beside `architecture`"):
        certood.load(weights, architecture="small-mlp")
    with pytest.raises(CheckpointError, match="classes describe foreign weights, which need `architecture` too"):
        certood.load(weights, classes=3)
    detector = certood.load(weights, architecture="small-mlp", classes=3, **SHAPE)
    with pytest.raises(CertoodError, match=r"unknown setting of a certification: .*'attack_step'"):
        certood.certify(detector, torch.zeros(1, 1, 8, 8), attack_step=3)
    with pytest.raises(CertoodError, match="expected norm inf, 2 or 1, got 3"):
        certood.certify(detector, torch.zeros(1, 1, 8, 8), norm=3)
    with pytest.raises(CertoodError, match="give images, or the run directory"):
        certood.certify(detector)
    with pytest.raises(CertoodError, match="finite"):
        detector.calibrated(torch.full((4, 1, 8, 8), math.nan))
    with pytest.raises(RecipeError, match="did you mean 'digits-greg'"):
        certood.train.fit("digits-gregg", tmp_path / "run")
