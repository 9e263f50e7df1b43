"""pytorch-ood's detectors beside our scores: their own numbers, which are certified, and a detector of ours as one of theirs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, TensorDataset

from certood.bridges.pytorch_ood import EQUAL, PostHocDetector, equal_score
from certood.checkpoints import load_checkpoint
from certood.cli import main
from certood.data import ImageSet, load_id, load_set, to_pixels
from certood.detector import Detector
from certood.errors import CertoodError, DataError
from certood.models import build_model
from certood.scores import Energy

theirs = pytest.importorskip("pytorch_ood.detector")

IMAGES = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SOURCE = ImageSet("images", IMAGES, torch.arange(300) % 4, tuple("abcd"))
LOADER = DataLoader(TensorDataset(to_pixels(IMAGES), torch.arange(300) % 4), batch_size=64)


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(3)
    model = build_model("small-cnn", num_classes=4, input_shape=(1, 8, 8), mean=(0.4,), std=(0.3,))
    return Detector(model, Energy(), None, "small-cnn", (1, 8, 8), tuple("abcd"), (0.4,), (0.3,))


@pytest.mark.parametrize("name", EQUAL)
def test_an_equal_score_is_theirs(name: str, detector: Detector) -> None:
    score = equal_score(f"pytorch-ood:{name}")
    assert score is not None
    logits = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(score(logits), getattr(theirs, name)(None).predict_logits(logits), rtol=1e-4, atol=1e-5)
    assert equal_score("pytorch-ood:EnergyBased,t=2") == Energy(temperature=2)
    assert equal_score("pytorch-ood:MaxSoftmax,t=2") is None


def test_scores_are_those_of_their_own_use(detector: Detector) -> None:
    pixels = to_pixels(IMAGES)
    model = detector.model
    layer = model.classifier
    by_hand = {
        "Mahalanobis": theirs.Mahalanobis(model.features),
        "KNN,k=3": theirs.KNN(model.features, k=3),
        "ViM,d=5": theirs.ViM(model.features, 5, layer.weight, layer.bias),
        "ODIN": theirs.ODIN(model),
        "KLMatching": theirs.KLMatching(model),
        "ReAct": theirs.ReAct(model.features, model.head),
    }
    for name, one in by_hand.items():
        found = PostHocDetector(f"pytorch-ood:{name}", detector).fit(SOURCE)(SOURCE)
        if one.requires_fit:
            one.fit(LOADER)
        torch.testing.assert_close(found, one.predict(pixels).detach().double(), rtol=1e-4, atol=1e-5, msg=name)


def test_most_of_their_detectors_are_made_of_the_network_alone(detector: Detector) -> None:
    for name in (
        "ASH",
        "fDBD",
        "GEN",
        "GMM",
        "GradNorm",
        "LTS",
        "NCI",
        "NNGuide",
        "PNML",
        "RMD",
        "SCALE",
        "VRA",
    ):
        scores = PostHocDetector(f"pytorch-ood:{name}", detector).fit(SOURCE)(SOURCE)
        assert len(scores.unique()) > 100, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pytorch-ood:Mahalanobi", "no detector 'Mahalanobi'; did you mean 'Mahalanobis'"),
        ("pytorch-ood:KNN,q=1", "KNN has no parameter 'q'; it has encoder, k"),
        ("pytorch-ood:ViM", "ViM needs d, .* such as pytorch-ood:ViM,d=1"),
        ("pytorch-ood:KNN,k", "expected key=value after the name, found 'k'"),
        ("openood:KNN", "expected pytorch-ood:NAME"),
        ("pytorch-ood:DICE,p=7", "pytorch-ood failed"),
        ("pytorch-ood:RankFeat", "RankFeat reads maps of several pixels"),
    ],
)
def test_a_wrong_name_is_an_error_that_says_so(text: str, message: str, detector: Detector) -> None:
    with pytest.raises(CertoodError, match=message):
        PostHocDetector(text, detector)


def test_a_parameter_of_an_equal_score_that_is_no_number_is_one_error() -> None:
    with pytest.raises(CertoodError, match="pytorch-ood:EnergyBased,t=abc: could not convert"):
        equal_score("pytorch-ood:EnergyBased,t=abc")


def test_outputs_that_are_no_classes_are_refused(detector: Detector) -> None:
    with pytest.raises(CertoodError, match="read classes alone"):
        PostHocDetector("pytorch-ood:KNN", replace(detector, classes=tuple("abc"), absent_class=True))
    with pytest.raises(DataError, match="has no labels"):
        PostHocDetector("pytorch-ood:Mahalanobis", detector).fit(ImageSet("bare", IMAGES))


def test_a_detector_is_one_of_theirs(detector: Detector) -> None:
    from pytorch_ood.metrics import OODMetrics

    from certood.bridges.as_pytorch_ood import CertoodDetector

    one = CertoodDetector(detector).fit(LOADER)
    scores = one(to_pixels(IMAGES))
    assert one.detector.threshold is not None
    assert float((scores <= one.detector.threshold).double().mean()) == pytest.approx(0.95)
    labels = torch.where(torch.arange(300) < 100, -1, 1)
    metrics = OODMetrics()
    metrics.update(scores, labels)
    expected = roc_auc_score((labels < 0).numpy(), scores.numpy())
    assert float(metrics.compute()["AUROC"]) == pytest.approx(expected, abs=1e-4)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_measures_and_never_certifies_them(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        run(
            "train", "digits-ce", "--out", out, "--set", "training.epochs=1", "--set", "model.options.width=4"
        ).exit_code
        == 0
    )
    asked = ("--detector", "pytorch-ood:KNN,k=5", "--detector", "pytorch-ood:EnergyBased,t=2")
    result = run("evaluate", out, *asked)
    assert result.exit_code == 0, result.output
    assert "pytorch-ood:EnergyBased,t=2 is the score energy:temperature=2.0, which can be certified" in result.output
    assert "pytorch-ood:KNN,k=5 †" in result.output
    found = json.loads((out / "evaluation.json").read_text())["scores"]
    assert "energy:temperature=2.0" in found
    entry = found["pytorch-ood:KNN,k=5"]
    assert entry["certifiable"] is False
    detector = load_checkpoint(out)
    splits = load_id("digits", root=Path(), recorded=detector.split)
    knn = theirs.KNN(detector.model.features, k=5)
    pixels = {
        name: to_pixels(source.batch(torch.arange(len(source))))
        for name, source in {
            "train": splits.train,
            "id": splits.test,
            "ood": load_set("digits-near", root=Path()),
        }.items()
    }
    knn.fit(DataLoader(TensorDataset(pixels["train"], splits.train.labels), batch_size=128))
    scores = [knn.predict(pixels[name]).numpy() for name in ("id", "ood")]
    expected = roc_auc_score(np.repeat([0, 1], [len(part) for part in scores]), np.concatenate(scores))
    assert entry["sets"]["digits-near"]["auroc"] == pytest.approx(expected, abs=1e-3)
    refused = run("certify", out, "--score", "pytorch-ood:KNN")
    assert refused.exit_code == 2
    assert "cannot be certified: measure it with" in refused.output
    certified = run("certify", out, "--score", "pytorch-ood:MaxLogit", "--limit", "1", "--out", tmp_path / "certified")
    assert certified.exit_code == 0, certified.output
    assert json.loads((tmp_path / "certified" / "certification.json").read_text())["score"] == "max-logit"
