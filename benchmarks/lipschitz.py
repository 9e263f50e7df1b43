"""How tight are certified local Lipschitz constants: their ratio to the largest gradient that is sampled in the ball.

Of the score of a run's detector and of its logits, on images of its ID test set: medians over the images of the bound of
‖∇S‖_q over B_p(x, ε) divided by the largest norm found by random search, of the logits the largest ratio of any. A ratio of 1
is exact; the largest gradient may be larger than those that are found.

    python benchmarks/lipschitz.py runs/digits-greg --images 10 --eps 0.01 0.05 --json lipschitz.json
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from certood.analysis.bounds import LpBall, capture, gradient_bound, logit_gradient_bound
from certood.checkpoints import load
from certood.data import to_pixels
from certood.runs import load_run_data

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.analysis.networks import sampled

DUAL = {math.inf: 1, 2: 2, 1: math.inf}


def steepest(values: Callable[[Tensor], Tensor], x: Tensor, eps: float, norm: float, rounds: int) -> Tensor:
    """The largest norms (N,) of gradients found in the balls by random search around the best points so far."""
    best, where = torch.zeros(len(x), dtype=torch.float64), x.clone()
    for _ in range(rounds):
        points = (x + (0.7 * (where - x) + 0.3 * (sampled(where, eps, norm, 40) - where))).clamp(0, 1)
        points = torch.cat([sampled(x, eps, norm, 40), points])
        flat = points.flatten(0, 1).requires_grad_()
        (slopes,) = torch.autograd.grad(values(flat).sum(), flat)
        sizes = slopes.flatten(1).norm(DUAL[norm], dim=1).view(len(points), len(x))
        value, place = sizes.max(0)
        where = torch.where((value > best).view(-1, 1, 1, 1), points[place, torch.arange(len(x))], where)
        best = torch.maximum(best, value)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--eps", type=float, nargs="+", default=(0.01, 0.03))
    parser.add_argument("--norm", type=float, default=math.inf, choices=tuple(DUAL))
    parser.add_argument("--rounds", type=int, default=15, help="of the random search")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    detector = load(arguments.run)
    source = load_run_data(arguments.run, recorded=detector.split)[0].test
    chosen = torch.arange(arguments.images) * len(source) // arguments.images
    x = to_pixels(source.batch(chosen)).double()
    part, score = detector.bounded_part()
    graph = capture(part, x[:1])
    module = graph.module
    assert module is not None
    rows = []
    print("| eps | score: bound / sampled | worst logit | quotient | s an image |\n|" + "---|" * 5)
    for eps in arguments.eps:
        ball = LpBall(x, eps, arguments.norm)
        begin = time.perf_counter()
        constant = gradient_bound(graph, ball, score=score).dual_norm
        seconds = (time.perf_counter() - begin) / len(x)
        own = constant / steepest(lambda y: score(module(y)), x, eps, arguments.norm, arguments.rounds)
        logits = torch.stack(
            [
                logit_gradient_bound(graph, ball, k).dual_norm
                / steepest(lambda y, k=k: module(y)[:, k], x, eps, arguments.norm, arguments.rounds)
                for k in range(graph.outputs)
            ]
        ).amax(0)
        rows.append({"eps": eps, "score": float(own.median()), "logit": float(logits.median()), "seconds": seconds})
        print(
            f"| {eps:g} | {own.median():.2f} | {logits.median():.2f} | {(own / logits).median():.2f} | {seconds:.3f} |",
            flush=True,
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    main()
