"""Certified radii of a deep network's score beside the distance of an attack: CROWN with rows in float32, image by image.

Of the ID test set of a run and of its OOD sets, `--images` of each that are decided rightly. The search of a radius starts at a
tenth of the attack's, ends within `--tolerance`, relatively, and takes a pass of CROWN over the network for every radius that it
tries. Every image is one line of `--jsonl`; with the same file the same command goes on.

    python benchmarks/deep_radii.py runs/resnet20 --data-root DIR --images 4 --jsonl radii.jsonl
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certood.analysis.bounds import LpBall, bound
from certood.analysis.certification import question_of
from certood.analysis.evidence.attacks import generators
from certood.analysis.evidence.direct import certified_radii
from certood.analysis.evidence.nearest import attack_radii
from certood.analysis.question import Question
from certood.checkpoints import load
from certood.data import to_pixels
from certood.runs import load_run_data


def measured(question: Question, image: Tensor, accepted: Tensor, tolerance: float) -> dict[str, float]:
    """Radii of one image (1, C, H, W), in pixels, and what a pass at the certified radius takes and gives."""
    zero = torch.zeros(1, dtype=torch.float64)
    attack = attack_radii(question, image, accepted, zero, random=generators(0, [0]))[0]
    begin = time.perf_counter()
    radius = certified_radii(
        question, image, accepted, method="crown", tolerance=tolerance, guess=attack / 10, dtype=torch.float32
    )
    search = time.perf_counter() - begin
    begin = time.perf_counter()
    found = bound(question.graph, LpBall(image, radius), score=question.score, dtype=torch.float32)
    return {
        "score": float(question.scores(image)),
        "attack_radius": float(attack),
        "certified_radius": float(radius),
        "ratio": float(radius / attack),
        "search_seconds": search,
        "pass_seconds": time.perf_counter() - begin,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "lower": float(found.lower),
        "upper": float(found.upper),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--data-root", type=Path, help="where npz: sets are")
    parser.add_argument("--images", type=int, default=4, help="of every set")
    parser.add_argument("--tolerance", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--jsonl", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector = load(arguments.run)
    question = question_of(detector)
    splits, sets = load_run_data(arguments.run, recorded=detector.split, root=arguments.data_root)
    lines = arguments.jsonl.read_text("utf-8").splitlines() if arguments.jsonl.exists() else []
    done: list[dict[str, Any]] = [json.loads(line) for line in lines]
    known = {(row["set"], row["index"]) for row in done}
    for place, (name, source) in enumerate({splits.test.name: splits.test, **sets}.items()):
        # Half of the candidates may be decided wrongly.
        candidates = torch.arange(2 * arguments.images) * len(source) // (2 * arguments.images)
        images = to_pixels(source.batch(candidates)).double()
        accepted = question.scores(images) <= question.threshold
        right = (accepted == (place == 0)).nonzero().flatten()[: arguments.images]
        for index in right.tolist():
            if (name, int(candidates[index])) in known:
                continue
            row = measured(question, images[index : index + 1], accepted[index : index + 1], arguments.tolerance)
            done.append({"set": name, "index": int(candidates[index])} | row)
            with arguments.jsonl.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(done[-1], flush=True)
    print(
        "\n| set | images | attack radius · 255 | certified radius · 255 | ratio | seconds a pass | peak GiB so far |\n|"
        + "---|" * 7
    )
    for name in dict.fromkeys(row["set"] for row in done):
        rows = [row for row in done if row["set"] == name]
        attack, certified, ratio, seconds = (
            statistics.median(row[key] for row in rows)
            for key in ("attack_radius", "certified_radius", "ratio", "pass_seconds")
        )
        peak = max(row["peak_gib"] for row in rows)
        print(
            f"| {name} | {len(rows)} | {255 * attack:.3f} | {255 * certified:.4f} | {ratio:.3f} | {seconds:.0f} | {peak:.1f} |"
        )
    print(f"\nMedians; l_inf, the score {detector.score.label}, {arguments.threads} thread(s).")


if __name__ == "__main__":
    main()
