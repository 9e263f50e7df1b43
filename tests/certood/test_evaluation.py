"""Evaluation: numbers of a detector whose scores are known, and the files it writes."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from certood.data import IdSplits, ImageSet, to_pixels
from certood.detector import Detector
from certood.errors import ArchitectureError, CertoodError, DataError
from certood.evaluation import evaluate, evaluation_table, write_evaluation
from certood.inference import collect_logits, forward_batch
from certood.metrics import threshold_at_tpr
from certood.scores import MSP, AbsentClass, Energy


class Brightness(nn.Module):
    """Logits (b, −b, 0) of the mean brightness b: brighter is more certainly class 0."""

    def forward(self, images: Tensor) -> Tensor:
        b = 8 * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([b, -b, torch.zeros_like(b)], 1)


@dataclass
class Setting:
    """A detector and its sets."""

    detector: Detector
    splits: IdSplits
    ood: dict[str, ImageSet]


def image_set(name: str, count: int, low: int, high: int, labelled: bool = True) -> ImageSet:
    generator = torch.Generator().manual_seed(count)
    values = torch.randint(low, high, (count, 1, 1, 1), generator=generator, dtype=torch.uint8)
    labels = (values.flatten() < 128).long() if labelled else None
    return ImageSet(
        name, values.expand(count, 1, 4, 4).contiguous(), labels, ("bright", "dark", "never") if labelled else ()
    )


@pytest.fixture
def setting() -> Setting:
    detector = Detector(Brightness(), Energy(), None, "x:y", (1, 4, 4), ("bright", "dark", "never"), (0.0,), (1.0,))
    splits = IdSplits(image_set("id", 50, 0, 256), image_set("id", 40, 0, 256), image_set("id", 60, 0, 256))
    ood = {"grey": image_set("grey", 70, 100, 150, False), "any": image_set("any", 30, 0, 256, False)}
    return Setting(detector, splits, ood)


def test_every_number_is_scikit_learns(setting: Setting) -> None:
    result = evaluate(setting.detector, setting.splits, setting.ood, progress=False, batch_size=7)
    assert result["accuracy"] == 1
    assert set(result["scores"]) == {"energy", "msp", "max-logit", "entropy", "kl-uniform"}
    model = setting.detector.model

    def scores(source: object) -> np.ndarray:
        images = to_pixels(source.images)  # type: ignore[attr-defined]
        return Energy()(model(images)).double().numpy()

    entry = result["scores"]["energy"]
    assert entry["threshold"] == pytest.approx(threshold_at_tpr(scores(setting.splits.validation)), rel=1e-6)
    for name, source in setting.ood.items():
        inside, outside = scores(setting.splits.test), scores(source)
        truth = [0] * len(inside) + [1] * len(outside)
        assert entry["sets"][name]["auroc"] == pytest.approx(
            roc_auc_score(truth, np.concatenate([inside, outside])), abs=1e-6
        )
        assert entry["sets"][name]["fpr95"] == pytest.approx(float((outside <= entry["threshold"]).mean()), abs=0.02)
        assert entry["sets"][name]["n"] == len(source)
    assert entry["mean"]["auroc"] == pytest.approx(np.mean([entry["sets"][name]["auroc"] for name in setting.ood]))


def test_an_absent_class_is_never_a_prediction(setting: Setting) -> None:
    """The largest output is the last one, which is none of the classes: accuracy is that of the others."""

    class More(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([Brightness()(images), torch.full((len(images), 1), 99.0)], 1)

    detector = replace(setting.detector, model=More(), absent_class=True)
    assert evaluate(detector, setting.splits, setting.ood, progress=False)["accuracy"] == 1


def test_the_stored_threshold_is_used_for_the_detectors_own_score(setting: Setting) -> None:
    result = evaluate(replace(setting.detector, threshold=1e9), setting.splits, setting.ood, progress=False)
    assert result["scores"]["energy"]["threshold"] == 1e9
    assert result["scores"]["energy"]["mean"]["fpr95"] == 1
    assert result["scores"]["msp"]["threshold"] < 0


def test_fpr95_is_at_95_percent_whatever_share_gamma_accepts(setting: Setting) -> None:
    usual = evaluate(
        setting.detector.calibrated(setting.splits.validation), setting.splits, setting.ood, progress=False
    )
    half = setting.detector.calibrated(setting.splits.validation, tpr=0.5)
    found = evaluate(half, setting.splits, setting.ood, bootstrap=20, progress=False)
    for score, entry in found["scores"].items():
        assert entry["threshold"] < usual["scores"][score]["threshold"]
        assert entry["mean"] == usual["scores"][score]["mean"]
    part = found["scores"]["energy"]["sets"]["any"]
    assert part["fpr95_interval"][0] <= part["fpr95"] <= part["fpr95_interval"][1]


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_a_network_that_ends_in_a_softmax_gives_no_logits(setting: Setting, last: nn.Module) -> None:
    detector = replace(setting.detector, model=nn.Sequential(Brightness(), last))
    with pytest.raises(ArchitectureError, match="which are no logits"):
        evaluate(detector, setting.splits, setting.ood, progress=False)
    for count in (1, 5):
        with pytest.raises(ArchitectureError, match="take the softmax at its end off"):
            detector.calibrated(torch.rand(count, 1, 4, 4))


def test_decisions_are_those_of_the_evaluation_where_scores_crowd_together(setting: Setting) -> None:
    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            b = 10 + 4 * images.mean((1, 2, 3))
            return torch.stack([b, -b], 1)

    detector = replace(setting.detector, model=Sure(), score=MSP(), classes=("bright", "dark"))
    images = to_pixels(setting.splits.validation.batch(torch.arange(40)))
    detector = detector.calibrated(images)
    # In float32 every one of these scores is −1.
    assert detector.threshold is not None
    assert -1 < detector.threshold < -1 + 1e-8
    logits = collect_logits(detector.model, setting.splits.test)
    accepted = detector.accepts(setting.splits.test.batch(torch.arange(60)))
    assert torch.equal(accepted, MSP()(logits) <= detector.threshold)
    assert 0 < accepted.float().mean() < 1
    assert detector.accepts(images).float().mean() == pytest.approx(0.95, abs=0.025)


def test_intervals_come_on_request(setting: Setting) -> None:
    measured = evaluate(setting.detector, setting.splits, setting.ood, bootstrap=50, progress=False)
    part = measured["scores"]["energy"]["sets"]["grey"]
    assert part["auroc_interval"][0] <= part["auroc"] <= part["auroc_interval"][1]
    assert part["fpr95_interval"][0] <= part["fpr95"] <= part["fpr95_interval"][1]


def test_the_file_reads_back_and_the_table_shows_every_set(setting: Setting, tmp_path: Path) -> None:
    result = evaluate(setting.detector, setting.splits, setting.ood, progress=False)
    write_evaluation(tmp_path / "evaluation.json", result)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    shown = str(evaluation_table(result))
    assert all(word in shown for word in ("grey", "any", "mean", "energy *", "accuracy 100.00 %"))
    lines = shown.splitlines()
    part = result["scores"]["energy"]["sets"]["grey"]
    expected = [f"{100 * part[name]:.2f}" for name in ("fpr95", "auroc", "aupr_in", "aupr_out")]
    assert lines[lines.index("grey") + 1].split() == ["energy", "*", *expected]
    assert "95 %" not in shown


def test_the_table_shows_the_intervals_that_were_computed_in_80_columns(setting: Setting) -> None:
    result = evaluate(setting.detector, setting.splits, setting.ood, bootstrap=50, progress=False)
    long = "npz:somewhere/a-name-that-is-longer-than-a-terminal-is-wide-but-shown-in-full.npz?colour=grey"
    for entry in result["scores"].values():
        entry["sets"][long] = entry["sets"].pop("any")
    lines = str(evaluation_table(result)).splitlines()
    place = lines.index(long)
    assert all(len(line) <= 80 for line in lines if line != long)
    part = result["scores"]["energy"]["sets"][long]
    ends = [f"{100 * end:.1f}" for name in ("fpr95", "auroc") for end in part[f"{name}_interval"]]
    assert [word for word in lines[place + 2].split() if word not in ("95", "%", "to")] == ends


def test_wrong_shapes_labels_and_logits_are_named(setting: Setting) -> None:
    other = ImageSet("other", torch.zeros(3, 1, 5, 5, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"other has images of shape \(1, 5, 5\), the network takes \(1, 4, 4\)"):
        evaluate(setting.detector, setting.splits, {"other": other}, progress=False)
    broken = nn.Module()
    broken.forward = lambda images: torch.full((len(images), 3), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="logits are not finite on 70 images of grey"):
        collect_logits(broken, setting.ood["grey"])
    with pytest.raises(CertoodError, match="holds no score"):
        evaluation_table({"accuracy": 1, "scores": {}})


def test_collecting_leaves_the_mode_of_the_network(setting: Setting) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Dropout(0.9))
    model.train()
    first = collect_logits(model, setting.ood["grey"])
    assert model.training
    torch.testing.assert_close(first, collect_logits(model, setting.ood["grey"], batch_size=3), rtol=1e-5, atol=1e-6)


def test_a_forward_pass_takes_as_many_images_as_suit_their_size_and_the_device(setting: Setting) -> None:
    shapes = [(3, 32, 32), (3, 224, 224), (1, 8, 8), (3, 64, 64)]
    assert [forward_batch(shape, "cpu") for shape in shapes] == [64, 4, 512, 16]
    assert [forward_batch(shape, torch.device("cuda")) for shape in shapes] == [512] * 4
    sizes = []

    class Counting(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return super().forward(images)

    large = ImageSet("large", torch.zeros(9, 1, 200, 200, dtype=torch.uint8))
    collect_logits(Counting(), large)
    collect_logits(Counting(), large, batch_size=6)
    replace(setting.detector, model=Counting(), input_shape=(1, 200, 200)).calibrated(large.images)
    assert sizes == [4, 4, 1, 6, 3, 4, 4, 1]


def test_the_absent_class_score_looks_at_all_outputs() -> None:
    logits = torch.randn(4, 5)
    torch.testing.assert_close(AbsentClass().on(4, 5)(logits), logits.softmax(1)[:, 4])
