"""Guarded detectors measured: AUC against GAUC over the weight α of the classifier's own score, as a Markdown table.

    python benchmarks/guards.py RUN [RUN ...] --data-root DIR --alphas 0,0.5,1,2,4,8 --json curve.json

A run is one that `certood train … --guard-of` has made; several are seeds, of which mean and standard deviation are shown.
S = G/σ + α·q(E), and over the ball S ≥ G_lb/σ whatever α is: one pass bounds the guard, and all α follow. Scores and bounds of
the guard are in float64. α = 0 is the guard alone; the classifier alone, by its own score E, of which nothing is certified,
is the last row. γ is calibrated on the validation images for every α. "accepted" is the share of ID images that are certified as
accepted, G_ub/σ + α ≤ γ. With --attacked N, S with the run's own α is attacked on N images of each OOD set, through both
networks: AUC / AAUC / GAUC of these images are the second table.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from certified_training import lowest_attacked
from torch import Tensor

from certood.analysis.bounds import LpBall, bound, capture
from certood.analysis.certification import question_of
from certood.analysis.certified_metrics import strict_auc, threat_metrics
from certood.checkpoints import load_checkpoint
from certood.data import ImageSource, to_pixels
from certood.detector import Detector
from certood.files import write_atomically
from certood.inference import logits_of_batches
from certood.metrics import fpr_at_threshold, threshold_at_tpr
from certood.runs import load_run_data
from certood.scores.guarded import Guarded

BATCH = 250


def spread(source: ImageSource, limit: int | None) -> Tensor:
    """At most so many images (N, C, H, W) in [0, 1], spread evenly over a set."""
    count = len(source) if limit is None else min(limit, len(source))
    return to_pixels(source.batch(torch.arange(count) * len(source) // count))


def known(detector: Detector, score: Guarded, images: Tensor, eps: float) -> dict[str, np.ndarray[Any, Any]]:
    """E, q(E), G/σ and, with ε > 0, certified bounds of G/σ over the balls, of images (N, C, H, W)."""
    outputs = logits_of_batches(detector.model, images.split(BATCH), "images")
    classifier = replace(detector, model=detector.model.get_submodule("base"), guard=None)
    energies = classifier.reading(score.base_score)(outputs[:, :-1])
    part, alone = replace(detector, score=replace(score, alpha=0.0)).bounded_part()
    graph = capture(part, images[:1])
    with torch.no_grad():
        guard = torch.cat([alone(graph(some.double())) for some in images.split(BATCH)])
    found = {"base": energies, "q": score.squashed(energies), "guard": guard}
    if eps:
        bounds = [bound(graph, LpBall(some, eps), "crown", score=alone) for some in images.split(BATCH)]
        found |= {side: torch.cat([getattr(one, side) for one in bounds]) for side in ("lower", "upper")}
    return {name: value.numpy() for name, value in found.items()}


def attacked(
    detector: Detector, test: ImageSource, sets: Mapping[str, ImageSource], arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """AUC, AAUC and GAUC of every OOD set, of the first table's bounds and of attacks on S."""
    question = question_of(detector)
    with torch.no_grad():
        clean_id = torch.cat([question.scores(part.double()) for part in spread(test, arguments.attacked).split(BATCH)])
    found = {}
    for name, source in sets.items():
        images = spread(source, arguments.attacked).double()
        with torch.no_grad():
            clean = torch.cat([question.scores(part) for part in images.split(BATCH)])
        balls = [LpBall(part, arguments.eps) for part in images.split(BATCH)]
        lower = torch.cat([bound(question.graph, ball, "crown", score=question.score).lower for ball in balls])
        lowest = lowest_attacked(detector, question, images, arguments.eps, arguments.steps, arguments.restarts)
        if (lower > torch.minimum(lowest, clean)).any():
            raise SystemExit(f"{name}: an attacked score lies below its bound")
        metrics = threat_metrics(clean_id, clean, lowest, lower, question.threshold)
        found[name] = {"n": len(images), "auc": metrics.auc, "aauc": metrics.aauc, "gauc": metrics.gauc}
    return found


def measured(run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy, and for every α the metrics of every OOD set, of one run."""
    detector = load_checkpoint(run)
    score = detector.score
    if not isinstance(score, Guarded):
        raise SystemExit(f"{run} has no guard: train it with certood train RECIPE --guard-of RUN")
    splits, sets = load_run_data(run, root=arguments.data_root, recorded=detector.split)
    validation = known(detector, score, spread(splits.validation, None), 0.0)
    inside = known(detector, score, spread(splits.test, arguments.limit), arguments.eps)
    outside = {
        name: known(detector, score, spread(source, arguments.limit), arguments.eps) for name, source in sets.items()
    }
    rows = []
    for alpha in (float(text) for text in arguments.alphas.split(",")):
        clean = inside["guard"] + alpha * inside["q"]
        gamma = threshold_at_tpr(validation["guard"] + alpha * validation["q"], detector.tpr)
        row: dict[str, Any] = {"alpha": alpha, "accepted": float((inside["upper"] + alpha <= gamma).mean()), "sets": {}}
        for name, part in outside.items():
            row["sets"][name] = {
                "auc": strict_auc(clean, part["guard"] + alpha * part["q"]),
                "gauc": strict_auc(clean, part["lower"]),
                "fpr95": fpr_at_threshold(part["guard"] + alpha * part["q"], gamma),
                "rejected": float((part["lower"] > gamma).mean()),
            }
        rows.append(row)
    alone = {name: {"auc": strict_auc(inside["base"], part["base"])} for name, part in outside.items()}
    stored = json.loads((run / "evaluation.json").read_text("utf-8"))
    return {
        "attacked": attacked(detector, splits.test, sets, arguments) if arguments.attacked else {},
        "run": str(run),
        "accuracy": stored["accuracy"],
        "score": score.description,
        "eps": arguments.eps,
        "images": {name: len(part["guard"]) for name, part in {"id": inside, **outside}.items()},
        "rows": rows,
        "classifier": alone,
    }


def cell(values: Sequence[float]) -> str:
    """Mean, and of several the standard deviation, in per cent."""
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * np.std(values, ddof=1):.1f}"


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a row for every α; AUC / GAUC of every set in per cent."""
    names = list(records[0]["rows"][0]["sets"])
    lines = [
        f"accuracy {cell([record['accuracy'] for record in records])} %, {len(records)} run(s), ε = {records[0]['eps']:g}",
        "",
    ]
    lines += ["| α | " + " | ".join(f"{name}: AUC / GAUC" for name in names) + " | ID accepted |"]
    lines += ["|---|" + "---|" * (len(names) + 1)]
    for place, row in enumerate(records[0]["rows"]):
        same = [record["rows"][place] for record in records]
        cells = [
            " / ".join(cell([one["sets"][name][metric] for one in same]) for metric in ("auc", "gauc"))
            for name in names
        ]
        lines.append(f"| {row['alpha']:g} | {' | '.join(cells)} | {cell([one['accepted'] for one in same])} |")
    alone = [f"{cell([record['classifier'][name]['auc'] for record in records])} / 0" for name in names]
    lines.append(f"| classifier alone | {' | '.join(alone)} | 0.0 |")
    if records[0]["attacked"]:
        lines += ["", "| set | images | AUC / AAUC / GAUC of S |", "|---|---|---|"]
        for name, one in records[0]["attacked"].items():
            values = [
                cell([record["attacked"][name][metric] for record in records]) for metric in ("auc", "aauc", "gauc")
            ]
            lines.append(f"| {name} | {one['n']} | {' / '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--alphas", default="0,0.25,0.5,1,2,4,8")
    parser.add_argument("--eps", type=float, default=0.01)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--attacked", type=int, default=0, help="images of each OOD set that are attacked")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.eps > 0:
        parser.error("--eps must be above 0")
    records = [measured(run, arguments) for run in arguments.runs]
    print(table(records))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
