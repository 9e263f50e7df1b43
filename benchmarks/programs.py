"""Random programs: is the graph what the module is, and does any point of a ball leave the bounds?

Compositions of every supported operation with random legal arguments (tests/analysis/programs.py), on random images, over balls
of every norm. Bounds of every method are compared with random points of the ball, most of them on its boundary, and with what
projected gradient ascent finds in both directions. A violation is a logit that leaves them by more than 1e-9.

    python benchmarks/programs.py --programs 500 --json programs.json
"""

import argparse
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path

import torch

from certood.analysis.bounds import LpBall, bound, capture

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.analysis.networks import attacked, sampled
from tests.analysis.programs import STEPS, Program

TOLERANCE = 1e-9
SHAPE = (2, 4, 4)
RADII = {math.inf: (0.003, 0.05, 0.5), 2: (0.02, 0.3, 2.0), 1: (0.05, 1.0, 5.0)}
# Methods, precisions, and parts of branch and bound.
RUNS = (
    ("interval", torch.float64, None),
    ("crown-ibp", torch.float64, None),
    ("crown", torch.float64, None),
    ("alpha-crown", torch.float64, None),
    ("crown", torch.float32, None),
    ("crown", torch.float64, 8),
    ("alpha-crown", torch.float64, 8),
    # The precision of what is split is float32 only where that of all rows is.
    ("crown-ibp", torch.float32, 8),
)


def measured(seed: int, points: int) -> list[dict[str, object]]:
    """One row for every method: a program, a norm and a radius for every seed."""
    model = Program(seed, SHAPE, length=1 + seed % 6)
    x = torch.rand(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    graph = capture(model, x)
    norm = tuple(RADII)[seed % 3]
    eps = RADII[norm][seed // 3 % 3]
    values = model(sampled(x, eps, norm, points, seed).flatten(0, 1)).view(points, len(x), 3)
    low = torch.minimum(values.amin(0), -attacked(lambda y: -model(y), x, eps, norm))
    high = torch.maximum(values.amax(0), attacked(model, x, eps, norm))
    rows: list[dict[str, object]] = []
    for method, dtype, parts in RUNS:
        found = bound(graph, LpBall(x, eps, norm), method, dtype=dtype, iterations=3, parts=parts)
        over = torch.cat([found.lower - low, high - found.upper]).nan_to_num(nan=math.inf)
        rows.append(
            {
                "seed": seed,
                "steps": model.names,
                "norm": f"{norm:g}",
                "eps": eps,
                "method": method,
                "dtype": str(dtype).removeprefix("torch."),
                "parts": parts,
                "violations": int((over > TOLERANCE).sum()),
                "largest_excess": float(over.max()),
                "finite": bool(found.width.isfinite().all()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--points", type=int, default=500, help="random points a ball")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    used: Counter[str] = Counter()
    for seed in range(arguments.first, arguments.first + arguments.programs):
        found = measured(seed, arguments.points)
        used.update(found[0]["steps"])  # type: ignore[call-overload]
        rows += found
        for row in found:
            if row["violations"]:
                print(f"violation: {row}", flush=True)
    print(f"| method | dtype | parts | programs | violations | largest excess | finite |\n|{'---|' * 7}")
    for method, dtype, parts in RUNS:
        run = method, str(dtype).removeprefix("torch."), parts
        own = [row for row in rows if (row["method"], row["dtype"], row["parts"]) == run]
        violations = sum(int(str(row["violations"])) for row in own)
        excess = max(float(str(row["largest_excess"])) for row in own)
        finite = sum(bool(row["finite"]) for row in own)
        print(f"| {method} | {str(dtype)[6:]} | {parts or 1} | {len(own)} | {violations} | {excess:.2g} | {finite} |")
    missing = sorted(set(STEPS) - set(used))
    print(f"\n{len(used)} of {len(STEPS)} kinds of steps occurred{'; not: ' + ', '.join(missing) if missing else ''}.")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    main()
