"""The clean benchmark: every score on every OOD set, from one forward pass an image."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certood.data import IdSplits, ImageSource, require_same_classes
from certood.detector import Detector
from certood.errors import CertoodError, DataError, RunDirectoryError
from certood.files import write_atomically
from certood.inference import collect_logits
from certood.metrics import Metric, aupr_in, aupr_out, auroc, bootstrap_interval, fpr_at_threshold, threshold_at_tpr
from certood.openood import grouped, openood_metrics
from certood.runs.directory import RunDirectory
from certood.runs.identity import detector_identity, differences, versions
from certood.runs.schema import SCHEMA_VERSION, EvaluationFile, read_checked
from certood.scores import Score, suitable_scores
from certood.text_tables import TextTable

# What is measured for every OOD set, by the names in files, and as tables head it.
METRICS = {"fpr95": "FPR95", "auroc": "AUROC", "aupr_in": "AUPR-in", "aupr_out": "AUPR-out"}


def evaluate(
    detector: Detector,
    splits: IdSplits,
    ood: Mapping[str, ImageSource],
    *,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    scores: Sequence[Score] | None = None,
    bootstrap: int = 0,
    near: Sequence[str] = (),
    others: Mapping[str, Callable[[ImageSource], Tensor]] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Accuracy, and for every score its γ and AUROC, FPR95, AUPR on every OOD set and on average.

    γ of the detector's own score is the stored one; that of the others accepts the detector's share of the validation images,
    never of the test images. FPR95 is at γ, or, where that share is another, at the threshold that accepts 95 %. With
    `bootstrap` resamplings each set also gets `auroc_interval` and `fpr95_interval` (95 %). Where OOD sets are called `near`,
    scores have the means of these and of the others (`far`) as well. `others` are detectors of other libraries by name, which
    give scores (N,) of a set, higher for outliers: they are measured like scores, and marked as not certified. Returns what
    `evaluation.json` holds. Raises DataError where images or classes do not fit the network, CertoodError for an unknown set.
    """
    for name in near:
        if name not in ood:
            raise CertoodError(f"near names {name!r}, which is no OOD set: expected one of {', '.join(ood)}")
    for source in (splits.validation, splits.test, *ood.values()):
        if source.shape != detector.input_shape:
            raise DataError(
                f"{source.name} has images of shape {source.shape}, the network takes {detector.input_shape}"
            )
    if splits.test.labels is None:
        raise DataError(f"{splits.test.name} has no labels, so there is no accuracy")
    require_same_classes(detector.classes, splits.test, "the network's classes")
    model = detector.model.to(device)
    sources = {"": splits.validation, "id": splits.test, **{f"ood/{n}": s for n, s in ood.items()}}
    logits = {
        name: collect_logits(model, source, batch_size=batch_size, device=device, progress=progress)
        for name, source in sources.items()
    }
    predicted = logits["id"][:, : len(detector.classes)].argmax(1)
    result: dict[str, Any] = {
        "accuracy": (predicted == splits.test.labels).double().mean().item(),
        "n_id": len(splits.test),
        "score": detector.score.label,
        "scores": {},
        "schema_version": SCHEMA_VERSION,
        "detector": detector_identity(detector),
        "image_sets": {
            "validation": splits.validation.fingerprint,
            "test": splits.test.fingerprint,
            "ood": {name: source.fingerprint for name, source in ood.items()},
        },
        "versions": versions(),
    }
    if near:
        result["near"] = [name for name in ood if name in near]
    for score in scores or measured_scores(detector):
        of_outputs = detector.reading(score)
        values = {name: of_outputs(part).numpy() for name, part in logits.items()}
        own = score == detector.score and detector.threshold is not None
        threshold = detector.threshold if own else threshold_at_tpr(values[""], detector.tpr)
        result["scores"][score.label] = _entry(values, threshold, detector.tpr, near, bootstrap, seed)
    for label, of_images in (others or {}).items():
        values = {name: of_images(source).numpy() for name, source in sources.items()}
        entry = _entry(values, threshold_at_tpr(values[""], detector.tpr), detector.tpr, near, bootstrap, seed)
        result["scores"][label] = entry | {"certifiable": False}
    return result


def measured_scores(detector: Detector) -> list[Score]:
    """The detector's own score with its parameters, and every other one that suits the network, with the default ones."""
    own = detector.score
    others = suitable_scores(len(detector.classes), detector.outputs)
    found = [own if score.name == own.name else score for score in others]
    return found if own in found else [own, *found]


def _entry(
    values: Mapping[str, NDArray[np.float64]],
    threshold: float | None,
    tpr: float,
    near: Sequence[str],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """One score's γ, which accepts the share `tpr`, numbers of every OOD set, and their means.

    `values` are those of the images of `evaluate`'s sets.
    """
    assert threshold is not None
    at_95 = threshold if tpr == 0.95 else threshold_at_tpr(values[""], 0.95)
    ood = {name.removeprefix("ood/"): part for name, part in values.items() if name.startswith("ood/")}
    sets = {name: _measure(values["id"], part, at_95, bootstrap, seed) for name, part in ood.items()}
    entry: dict[str, Any] = {"threshold": threshold, "sets": sets}
    for group, members in (grouped(list(sets), ()) | grouped(list(sets), near)).items():
        entry[group] = {metric: float(np.mean([sets[name][metric] for name in members])) for metric in METRICS}
    return entry


def _measure(
    inside: NDArray[np.float64], outside: NDArray[np.float64], threshold: float, bootstrap: int, seed: int
) -> dict[str, Any]:
    measured: dict[str, Any] = {
        "n": len(outside),
        "auroc": auroc(inside, outside),
        "fpr95": fpr_at_threshold(outside, threshold),
        "aupr_in": aupr_in(inside, outside),
        "aupr_out": aupr_out(inside, outside),
        "openood": openood_metrics(inside, outside),
    }
    if bootstrap:
        metrics: dict[str, Metric] = {"auroc": auroc, "fpr95": lambda _, ood: fpr_at_threshold(ood, threshold)}
        for name, metric in metrics.items():
            measured[f"{name}_interval"] = list(
                bootstrap_interval(metric, inside, outside, samples=bootstrap, seed=seed)
            )
    return measured


def write_evaluation(path: Path, result: Mapping[str, Any]) -> None:
    """Write evaluation.json, atomically; raises RunDirectoryError where it cannot."""
    write_atomically(path, json.dumps(result, indent=2) + "\n")


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """What an evaluation.json holds, or None where there is none; raises RunDirectoryError where it does not read."""
    return read_checked(path, EvaluationFile)


def evaluation_of(run: Path) -> dict[str, Any]:
    """The evaluation of a run directory; raises RunDirectoryError where there is none, or it does not read."""
    path = RunDirectory(run).evaluation
    found = read_evaluation(path)
    if found is None:
        raise RunDirectoryError(f"there is no {path}: the run was not evaluated")
    return found


def dropped(old: Mapping[str, Any], detector: Detector, scores: Collection[str], ood: Collection[str]) -> list[str]:
    """The scores and OOD sets of an earlier evaluation of the same detector that one of these would not have."""
    if differences(old.get("detector", {}), detector_identity(detector)):
        return []
    known = [name for entry in old["scores"].values() for name in entry["sets"]]
    return [name for name in dict.fromkeys([*old["scores"], *known]) if name not in (*scores, *ood)]


def one_line(result: Mapping[str, Any]) -> str:
    """Accuracy, and the detector's own score over all OOD sets where it was measured on some, in per cent."""
    accuracy = f"accuracy {100 * result['accuracy']:.1f} %"
    mean = result["scores"].get(result["score"], {}).get("mean")
    if mean is None:
        return accuracy
    return f"{accuracy}, mean FPR95 {100 * mean['fpr95']:.1f} %, mean AUROC {100 * mean['auroc']:.1f} %"


def evaluation_table(result: Mapping[str, Any]) -> TextTable:
    """Accuracy, and FPR95, AUROC and both AUPR in per cent: one row per OOD set and score, the detector's own score first.

    Where intervals were computed, those of a row are below it.
    """
    scores = result["scores"]
    if not scores:
        raise CertoodError("the evaluation holds no score")
    accuracy = f"accuracy {100 * result['accuracy']:.2f} %"
    uncertified = "; † not certified" if any(not entry.get("certifiable", True) for entry in scores.values()) else ""
    title = f"{accuracy}; OOD sets in %; * the detector's own score{uncertified}"
    table = TextTable(("score", *METRICS.values()), title=title)
    ordered = sorted(scores, key=lambda name: name != result.get("score"))
    groups = [(name, {score: scores[score]["sets"][name] for score in ordered}) for name in _sets(scores)]
    for mean in ("near", "far", "mean"):
        if all(mean in entry for entry in scores.values()):
            heading = mean if mean == "mean" else f"mean of {mean} sets"
            groups.append((heading, {score: scores[score][mean] for score in ordered}))
    for heading, parts in groups:
        table.line(heading)
        for score, part in parts.items():
            mark = " *" if score == result.get("score") else "" if scores[score].get("certifiable", True) else " †"
            shown = score + mark
            table.row(shown, *(f"{100 * part[key]:.2f}" for key in METRICS))
            if any(f"{key}_interval" in part for key in METRICS):
                table.row("  95 %", *(_interval(part.get(f"{key}_interval")) for key in METRICS))
    return table


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _sets(scores: Mapping[str, Any]) -> list[str]:
    """The OOD sets of an evaluation, every score having the same."""
    return list(next(iter(scores.values()))["sets"])
