"""What theory looks at, on trained networks: estimates of how steep a score is, and how far decisions hold, before and after.

For every run, medians over `--images` images of the ID test set and of each OOD set, in l2 and pixels: ‖∇S‖₂, which figure 3
of the GReg paper is about, the largest of `--samples` gradients sampled in the ball of radius `--eps`, the distance at which an
attack changes the decision, and the radius of the smoothed detector (σ `--sigma`, probabilistic), both 0 where the decision is
wrong; beside FPR95 and AUROC of evaluation.json. Gradient norms, sampled maxima and attacks are estimates: they certify
nothing. The run that the others started from, `training.init` of their recipes, is measured too, and of three runs or more the
rank correlation of the change in gradient norm with the change in FPR95 is printed, over each such network and over all, of
the runs that kept its score: norms of different scores have no common unit.
`--measures gradient_norm` measures less and is quick. A line of `--jsonl` is one run: with the same file the same command,
from the same folder, goes on.

    python benchmarks/theory.py runs/*-0 --data-root DIR --jsonl theory.jsonl
"""

import argparse
import json
import math
import statistics
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from guards import spread
from scipy import stats
from torch import Tensor

from certood.analysis.bounds import Graph
from certood.analysis.bounds.float64_copy import float64_copy
from certood.analysis.evidence.attacks import generators
from certood.analysis.evidence.estimates import gradient_norms, sampled_gradient_norms
from certood.analysis.evidence.nearest import attack_radii
from certood.analysis.evidence.smoothing import MedianSmoothing
from certood.analysis.question import Question
from certood.checkpoints import load
from certood.data import ImageSource
from certood.detector import Detector
from certood.runs import load_run_data

BATCH = 32
MEASURES = {
    "gradient_norm": "‖∇S‖₂ (estimate)",
    "sampled": "largest sampled (estimate)",
    "radius_attack": "attack radius (estimate)",
    "radius_smoothed": "smoothed radius (probabilistic)",
}
SETTINGS = ("images", "eps", "samples", "sigma", "smoothing_samples", "measures")


def measured(detector: Detector, source: ImageSource, inside: bool, arguments: argparse.Namespace) -> dict[str, float]:
    """Medians over images spread evenly over a set."""
    assert detector.threshold is not None
    model = float64_copy(detector.model)
    question = Question(Graph((), model), detector.output_score, detector.threshold, norm=2.0)
    images = spread(source, arguments.images).to(torch.float64)
    found: dict[str, list[Tensor]] = {name: [] for name in arguments.measures}
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        random = generators(0, range(start, start + len(part)))
        if "gradient_norm" in found:
            found["gradient_norm"].append(gradient_norms(question, part))
        if "sampled" in found:
            eps = torch.full((len(part),), arguments.eps, dtype=torch.float64)
            norms = sampled_gradient_norms(question, part, eps, random=random, samples=arguments.samples)
            found["sampled"].append(norms.amax(0))
        if "radius_attack" in found:
            found["radius_attack"].append(attacked_radii(question, part, random, inside))
        if "radius_smoothed" in found:
            found["radius_smoothed"].append(smoothed_radii(detector, part, start, inside, arguments))
    return {name: statistics.median(torch.cat(parts).tolist()) for name, parts in found.items()}


def attacked_radii(question: Question, images: Tensor, random: Sequence[torch.Generator], inside: bool) -> Tensor:
    """Distances (N,) at which an attack changes the decision, 0 where the decision is wrong."""
    with torch.no_grad():
        accepted = question.scores(images) <= question.threshold
    right = (accepted == inside).nonzero().flatten()
    radii = torch.zeros(len(images), dtype=torch.float64)
    if len(right):
        known = torch.zeros_like(radii[right])
        chosen = [random[int(row)] for row in right]
        radii[right] = attack_radii(
            question, images[right], accepted[right], known, random=chosen, steps=20, restarts=1
        )[0]
    return radii


def smoothed_radii(
    detector: Detector, images: Tensor, start: int, inside: bool, arguments: argparse.Namespace
) -> Tensor:
    """Radii (N,) of the smoothed detector, 0 where its decision is wrong."""
    smoothing = MedianSmoothing(arguments.sigma, arguments.smoothing_samples, 0.999)
    assert detector.threshold is not None
    radii = []
    for place, image in enumerate(images.to(torch.float32), start=start):
        accepted, radius = smoothing.radius(detector.model, detector.output_score, detector.threshold, image, place)
        radii.append(radius if accepted == inside else 0.0)
    return torch.tensor(radii, dtype=torch.float64)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a line of the file depends on, beside the run."""
    return {name: getattr(arguments, name) for name in SETTINGS}


def start_of(run: Path) -> Path | None:
    """The run that a run started from, where it is one that was evaluated."""
    init = tomllib.loads((run / "recipe.toml").read_text("utf-8"))["training"].get("init")
    return Path(init) if init is not None and (Path(init) / "evaluation.json").exists() else None


def record(run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that is shown of a run."""
    detector = load(run)
    detector.model.eval()
    splits, ood = load_run_data(run, recorded=detector.split, root=arguments.data_root)
    evaluation = json.loads((run / "evaluation.json").read_text("utf-8"))
    mean = evaluation["scores"][evaluation["score"]]["mean"]
    sets = {splits.test.name: measured(detector, splits.test, True, arguments)}
    sets |= {name: measured(detector, source, False, arguments) for name, source in ood.items()}
    return {
        "run": str(run),
        "settings": settings(arguments),
        "score": evaluation["score"],
        "fpr95": mean["fpr95"],
        "auroc": mean["auroc"],
        "accuracy": evaluation["accuracy"],
        "sets": sets,
    }


def lines(records: Sequence[dict[str, Any]], measures: Sequence[str]) -> list[str]:
    """A Markdown table: ID, and the mean over the OOD sets, for every run."""
    found = [
        "| run | FPR95 | AUROC | accuracy | " + " | ".join(f"{MEASURES[name]}: ID / OOD" for name in measures) + " |",
        "|" + "---|" * (4 + len(measures)),
    ]
    for one in records:
        inside, *outside = one["sets"].values()
        cells = [f"{inside[name]:.3g} / {statistics.fmean(part[name] for part in outside):.3g}" for name in measures]
        share = " | ".join(f"{100 * one[name]:.1f}" for name in ("fpr95", "auroc", "accuracy"))
        found.append(f"| {one['run']} | {share} | {' | '.join(cells)} |")
    return found


def comparable(after: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a run and its start were evaluated by one score, on the same sets."""
    return after["score"] == before["score"] and after["sets"].keys() == before["sets"].keys()


def correlation(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """The rank correlation, over runs and what they started from, of the change in log gradient norm with the change in FPR95."""

    def steepness(one: dict[str, Any], *, inside: bool) -> float:
        own, *others = (part["gradient_norm"] for part in one["sets"].values())
        return math.log(own if inside else statistics.fmean(others))

    found = []
    for inside in (True, False):
        changes = [steepness(after, inside=inside) - steepness(before, inside=inside) for after, before in pairs]
        result = stats.spearmanr(changes, [after["fpr95"] - before["fpr95"] for after, before in pairs])
        found.append(f"{'ID' if inside else 'OOD'} {result.statistic:.2f} (p {result.pvalue:.2f})")
    return f"{', '.join(found)}, {len(pairs)} runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories that were evaluated")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--images", type=int, default=32, help="of every set")
    parser.add_argument("--eps", type=float, default=0.25, help="radius of the balls in which gradients are sampled")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--sigma", type=float, default=0.06)
    parser.add_argument("--smoothing-samples", type=int, default=200)
    parser.add_argument("--jsonl", type=Path, required=True)
    arguments = parser.parse_args()
    known = arguments.jsonl.read_text("utf-8").splitlines() if arguments.jsonl.exists() else []
    done: dict[str, dict[str, Any]] = {
        one["run"]: one for one in map(json.loads, known) if one.get("settings") == settings(arguments)
    }
    starts = {run: start_of(run) for run in arguments.runs}
    runs = list(dict.fromkeys([*filter(None, starts.values()), *arguments.runs]))
    for run in runs:
        if str(run) in done:
            continue
        done[str(run)] = record(run, arguments)
        with arguments.jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[str(run)]) + "\n")
        print(f"{run}: {json.dumps(done[str(run)]['sets'])}", flush=True)
    print("\n".join(["", *lines([done[str(run)] for run in runs], arguments.measures)]))
    if "gradient_norm" not in arguments.measures:
        return
    started = {run: start for run, start in starts.items() if start is not None}
    networks = list(dict.fromkeys(started.values()))
    if networks:
        print("\nRank correlation of the change in gradient norm with the change in FPR95:")
    for among in [*([network] for network in networks), *([networks] if len(networks) > 1 else [])]:
        pairs = [(done[str(run)], done[str(start)]) for run, start in started.items() if start in among]
        pairs = [(after, before) for after, before in pairs if comparable(after, before)]
        if len(pairs) > 2:
            print(f"- from {', '.join(map(str, among))}: {correlation(pairs)}")
        else:
            print(f"- from {', '.join(map(str, among))}: {len(pairs)} runs of its score and its sets, fewer than three")


if __name__ == "__main__":
    main()
