"""Does any point of a ball leave the bounds? Random points and attacks against every family of networks, norm and method.

The families are those of the tests (tests/analysis/networks.py), random and trained. For each, the logits and the scores at
random points of the ball, most of them on its boundary, and the extremes that projected gradient ascent finds in both
directions with restarts, are compared with the bounds. A violation is a value that leaves them by more than 1e-9. `reach` is
how much of the bounds' width the values fill, the mean over images and logits: 1 would be exact.

    python benchmarks/soundness.py --points 100000 --json soundness.json
    python benchmarks/soundness.py --points 2000 --families mlp gated --iterations 2
"""

import argparse
import json
import math
import os
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from certood.analysis.bounds import METHODS, Graph, LpBall, analyse, capture, score_bounds
from certood.analysis.bounds.branching import Effort, branched_rows, branched_score
from certood.analysis.evidence.attacks import ascend, generators
from certood.scores import SCORES, Score, score_by_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.analysis.networks import NETWORKS, RADII, images, network, sampled

TOLERANCE = 1e-9
# Methods, and parts of branch and bound.
RUNS = (*((method, None) for method in METHODS), ("crown", 8), ("alpha-crown", 8))
CHUNK = 5000


def column(score: Score, logits: Tensor) -> Tensor:
    return score(logits)[:, None]


def extremes(model: nn.Module, x: Tensor, eps: float, norm: float, points: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Lowest and highest logits and scores met: names to two tensors (N, M)."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, values: Tensor) -> None:
        low, high = values.amin(0), values.amax(0)
        if name in found:
            low, high = torch.minimum(low, found[name][0]), torch.maximum(high, found[name][1])
        found[name] = low, high

    functions = {"logits": lambda z: z} | {name: partial(column, score_by_name(name)) for name in SCORES.names()}
    for start in range(0, points, CHUNK):
        block = sampled(x, eps, norm, min(CHUNK, points - start), seed=start)
        with torch.no_grad():
            logits = model(block.flatten(0, 1))
            for name, function in functions.items():
                note(name, function(logits).view(len(block), len(x), -1))
    radii = torch.full((len(x),), eps, dtype=torch.float64)
    for name, function in functions.items():
        columns = found[name][0].shape[1]
        for place in range(columns):
            for sign in (1.0, -1.0):
                best, _ = ascend(
                    lambda y, f=function, c=place, s=sign: s * f(model(y))[:, c],
                    x, radii, norm, random=generators(place, range(len(x))), steps=40, restarts=4,
                )  # fmt: skip
                value = found[name][0].clone()
                value[:, place] = sign * best
                note(name, value[None])
    return found


def checked(
    graph: Graph,
    ball: LpBall,
    method: str,
    dtype: torch.dtype,
    parts: int | None,
    seen: dict[str, tuple[Tensor, Tensor]],
    iterations: int,
) -> dict[str, float | int | str]:
    analysis = analyse(graph, ball, method, iterations=iterations, dtype=dtype)
    rows = torch.eye(graph.outputs, dtype=torch.float64).expand(len(ball), -1, -1)
    effort = None if parts is None else Effort(parts, first_steps=5, steps=3)
    logits = analysis.rows(rows) if effort is None else branched_rows(analysis, rows, None, effort)
    bounds = {"logits": (logits.lower, logits.upper)}
    for name in SCORES.names():
        score = score_by_name(name)
        found = score_bounds(analysis, score) if effort is None else branched_score(analysis, score, effort)
        bounds[name] = found.lower[:, None], found.upper[:, None]
    violations, excess = 0, -math.inf
    for name, (low, high) in seen.items():
        over = torch.cat([bounds[name][0] - low, high - bounds[name][1]])
        violations += int((over > TOLERANCE).sum())
        excess = max(excess, float(over.max()))
    spread = (seen["logits"][1] - seen["logits"][0]) / logits.width.clamp_min(1e-300)
    return {"violations": violations, "largest_excess": excess, "reach": float(spread.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000, help="random points a ball")
    parser.add_argument("--families", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS))
    parser.add_argument("--iterations", type=int, default=10, help="steps of α-CROWN")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    rows: list[dict[str, float | int | str | bool | None]] = []
    for family in arguments.families:
        for trained in (False, True):
            model, x = network(family, trained), images()
            model.requires_grad_(False)
            graph = capture(model, x)
            for norm, eps in RADII.items():
                seen = extremes(model, x, eps, norm, arguments.points)
                for method, parts in RUNS:
                    for dtype in (torch.float64, torch.float32):
                        found = checked(graph, LpBall(x, eps, norm), method, dtype, parts, seen, arguments.iterations)
                        case = {
                            "family": family,
                            "trained": trained,
                            "norm": "inf" if norm == math.inf else f"{norm:g}",
                        }
                        rows.append(
                            case
                            | {"method": method, "dtype": str(dtype).removeprefix("torch."), "parts": parts, **found}
                        )
                own = [row for row in rows if row["family"] == family and row["trained"] == trained]
                print(f"{family} trained={trained} l{norm}: {sum(int(row['violations']) for row in own)}", flush=True)
    print(f"\n| norm | method | dtype | parts | cases | violations | largest excess | mean reach |\n|{'---|' * 8}")
    for norm in ("inf", "2", "1"):
        for method, parts in RUNS:
            for precision in ("float64", "float32"):
                run = norm, method, precision, parts
                own = [r for r in rows if (r["norm"], r["method"], r["dtype"], r["parts"]) == run]
                reach = sum(float(row["reach"]) for row in own) / len(own)
                violations = sum(int(row["violations"]) for row in own)
                print(
                    f"| {norm} | {method} | {precision} | {parts or 1} | {len(own)} | {violations} "
                    f"| {max(float(row['largest_excess']) for row in own):.2g} | {reach:.3f} |"
                )
    print(
        f"\n{arguments.points} random points a ball and attacks (40 steps, 4 restarts) on every logit and score, both ways."
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    main()
