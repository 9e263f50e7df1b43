"""The Python façade: as short as the command line, imported late, and with errors that name what is expected."""

import importlib
import math
import pydoc
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import certood
from certood.analysis.records import append_certificates
from certood.errors import CannotCertify, CertoodError, CheckpointError, DataError, RecipeError, RunDirectoryError
from certood.models import build_model
from certood.scores import MSP

SHAPE = {"input_shape": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model("small-mlp", num_classes=3, input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,)).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_every_kind_of_array_gives_the_same_decisions_and_records(weights: Path) -> None:
    detector = certood.load(weights, architecture="small-mlp", classes=3, **SHAPE)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    detector = detector.calibrated(pixels, tpr=0.5)
    backwards = np.ascontiguousarray(pixels[..., ::-1])[..., ::-1]
    locked = pixels.copy()
    locked.flags.writeable = False
    few = {"attack_steps": 2, "restarts": 1, "samples": 2}
    expected = [record.radius_certified for record in certood.certify(detector, torch.from_numpy(pixels) / 255, **few)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for images in (pixels, backwards, locked, torch.from_numpy(pixels), pixels / 255, (pixels / 255).astype("f4")):
            assert detector.accepts(images).tolist() == detector.accepts(pixels).tolist()
            radii = [record.radius_certified for record in certood.certify(detector, images, **few)]
            np.testing.assert_allclose(radii, expected, rtol=1e-4, atol=1e-6)  # γ is the score of one of them
    for wrong, message in (
        (pixels.astype(np.int32), "floats in .0, 1. or as uint8, got torch.int32"),
        (pixels[0], r"shape \(N, 1, 8, 8\), got \(1, 8, 8\)"),
        (pixels * 1.0, "what is 0 to 255 is divided by 255"),
    ):
        for call in (detector.accepts, lambda images: certood.certify(detector, images)):
            with pytest.raises(DataError, match=message):
                call(wrong)


def test_certificates_are_read_into_a_flat_table(tmp_path: Path, weights: Path) -> None:
    pd = pytest.importorskip("pandas", reason="the extra `pandas` is not installed")
    detector = certood.load(weights, architecture="small-mlp", classes=3, **SHAPE)
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    records = certood.certify(detector.calibrated(images, tpr=0.5), images, eps=(0.01, 0.1))
    frame = records.to_frame()
    append_certificates(tmp_path / "certificates.csv", records, (0.01, 0.1))
    # The oracle is pandas' own reader of the file that is written.
    text = pd.read_csv(tmp_path / "certificates.csv")
    pd.testing.assert_frame_equal(frame, text)
    assert frame["accepted"].dtype == bool
    assert frame["verdict@0.1"].tolist() == [record.at[1].verdict for record in records]
    for place in (tmp_path, tmp_path / "certificates.csv"):
        pd.testing.assert_frame_equal(certood.read_certificates(place).to_frame(), frame)


def test_without_pandas_records_are_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    append_certificates(tmp_path / "certificates.csv", [], (0.01,))
    records = certood.read_certificates(tmp_path)
    assert records == []
    with pytest.raises(CertoodError, match=r"needs pandas: pip install 'certood\[pandas\]'"):
        records.to_frame()
    with pytest.raises(RunDirectoryError, match="certify the run first, with `certood certify nowhere`"):
        certood.read_certificates("nowhere")


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_trained_loaded_certified_and_reported_in_four_lines(tmp_path: Path) -> None:
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
