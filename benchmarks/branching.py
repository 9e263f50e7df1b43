"""Branching rules compared: how many decisions branch and bound proves, with how many parts, in how much time.

For ID test images of a run's detector: is the most probable class more probable than the second on the l_inf ball of radius
√(r·R), r the radius that CROWN certifies and R the distance of an attack: neither decides. Every rule of
`certood.analysis.bounds.branching` splits inputs of activations, up to so many parts; `pixels` splits the box of inputs instead,
at the pixel that the linear bound depends on most, and bounds both halves by CROWN anew. `left` sums up what the bounds of
undecided images lack.

    python benchmarks/branching.py runs/digits-greg --images 12 --parts 200 --json branching.json
"""

import argparse
import heapq
import itertools
import json
import math
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from certood.analysis.bounds import Graph, LpBall, analyse, capture
from certood.analysis.bounds.box import Box
from certood.analysis.bounds.branching import RULES, Effort, Functions, Mixture, branched_least
from certood.analysis.evidence.attacks import ascend, generators
from certood.checkpoints import load
from certood.data import to_pixels
from certood.runs import load_run_data


def certified(graph: Graph, image: Tensor, row: Tensor) -> float:
    """The radius up to which CROWN keeps a row above 0, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        kept = bool(analyse(graph, LpBall(image, middle)).lower_rows(row[None, None]) > 0)
        low, high = (middle, high) if kept else (low, middle)
    return low


def attacked(graph: Graph, image: Tensor, row: Tensor, start: float) -> float:
    """The radius in which an attack makes a row negative, by bisection from `start`."""
    low, high = start, min(1.0, 6 * start)
    for _ in range(6):
        middle = (low + high) / 2
        radius = torch.tensor([middle], dtype=torch.float64)
        assert graph.module is not None
        best, _ = ascend(lambda x: -(graph.module(x) @ row), image, radius, math.inf, random=generators(0, [0]))
        low, high = (low, middle) if best.item() > 0 else (middle, high)
    return high


def by_rule(graph: Graph, ball: LpBall, row: Tensor, rule: str, parts: int) -> float:
    number, nothing = torch.zeros(1, dtype=torch.int64), torch.full((1,), -math.inf, dtype=torch.float64)
    start = torch.zeros(1, 1, dtype=torch.float64)
    functions = Functions(number, number, start, nothing, Mixture(row[None, None], start))
    return branched_least(analyse(graph, ball), functions, Effort(parts, rule=rule)).item()


def by_pixels(graph: Graph, ball: LpBall, row: Tensor, parts: int) -> float:
    numbers = itertools.count()
    waiting = [(-math.inf, next(numbers), ball.lower, ball.upper)]
    closed, made = math.inf, 0
    while waiting and made < parts:
        _, _, lower, upper = heapq.heappop(waiting)
        analysis = analyse(graph, Box(lower, upper))  # type: ignore[arg-type]
        bound, made = analysis.lower_rows(row[None, None]).item(), made + 1
        if bound > 0:
            closed = min(closed, bound)
            continue
        slope = analysis.linear_lower(len(graph.nodes) - 1, row[None, None]).rows[:, 0]
        place = int((slope.abs() * (upper - lower)).argmax())
        middle = (lower + upper).flatten()[place] / 2
        for end, kept in ((lower, "upper"), (upper, "lower")):
            cut = end.clone().flatten()
            cut[place] = middle
            cut = cut.view_as(end)
            ends = (cut, upper) if kept == "upper" else (lower, cut)
            heapq.heappush(waiting, (bound, next(numbers), *ends))
    # Halves that were not bounded are as low as the whole of which they are.
    return min(closed, waiting[0][0]) if waiting else closed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    detector = load(arguments.run)
    source = load_run_data(arguments.run, recorded=detector.split)[0].test
    images = to_pixels(source.batch(torch.arange(arguments.images) * len(source) // arguments.images)).double()
    graph = capture(detector.model, images[:1])
    questions = []
    for image, logits in zip(images.split(1), graph(images), strict=True):
        first, second = logits.topk(2).indices.tolist()
        row = torch.zeros_like(logits)
        row[first], row[second] = 1, -1
        radius = certified(graph, image, row)
        questions.append((LpBall(image, math.sqrt(radius * attacked(graph, image, row, radius))), row))
    print("| splits | proved | left | CPU seconds |\n|---|---|---|---|")
    table = []
    for name in (*RULES, "pixels"):
        begin = time.process_time()
        found = [
            by_pixels(graph, ball, row, arguments.parts)
            if name == "pixels"
            else by_rule(graph, ball, row, name, arguments.parts)
            for ball, row in questions
        ]
        seconds = time.process_time() - begin
        proved, left = sum(one > 0 for one in found), -sum(min(one, 0.0) for one in found)
        table.append({"splits": name, "proved": proved, "images": len(found), "left": left, "seconds": seconds})
        print(f"| {name} | {proved} of {len(found)} | {left:.3f} | {seconds:.1f} |", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(table, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    main()
