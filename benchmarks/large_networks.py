"""Bounds of large networks on one image: seconds, memory, and the bounds, whatever they are.

Random weights after a few passes in train mode, so that batch statistics are those of the images; the energy, l_inf, CROWN-IBP.

    python benchmarks/large_networks.py --json large.json
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from certood.analysis.bounds import LpBall, bound, capture
from certood.models import build_model
from certood.scores import Energy


def measured(name: str, method: str, eps: float, max_memory: float | None, threads: int) -> dict[str, float | str]:
    """One network at one radius, in a process of its own, whose peak of memory is that of nothing else."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, input_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, options={})
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, 32, 32))
    x = torch.rand(1, 3, 32, 32)
    graph = capture(model, x)
    begin = time.perf_counter()
    found = bound(graph, LpBall(x, eps), method, score=Energy(), max_memory=max_memory)
    return {
        "network": name,
        "method": found.method,
        "seconds": time.perf_counter() - begin,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "score": float(Energy()(graph(x.double()))),
        "lower": float(found.lower),
        "upper": float(found.upper),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=("resnet18", "wrn-40-2"))
    parser.add_argument("--method", default="crown-ibp")
    parser.add_argument("--eps", type=float, nargs="+", default=(0.0, 1e-5, 1 / 255), help="radii in pixels")
    parser.add_argument("--max-memory", type=float, default=math.nan, help="GiB for the rows of linear bounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    budget = None if math.isnan(arguments.max_memory) else arguments.max_memory * 2**30
    print("| network | ε | method | seconds | peak GiB | score | lower | upper |\n|---|---|---|---|---|---|---|---|")
    rows = []
    for name in arguments.networks:
        for eps in arguments.eps:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                row = alone.submit(measured, name, arguments.method, eps, budget, arguments.threads).result()
            rows.append(row | {"eps": eps})
            print(
                f"| {name} | {eps:.2g} | {row['method']} | {row['seconds']:.1f} | {row['peak_gib']:.2f} "
                f"| {row['score']:.4g} | {row['lower']:.4g} | {row['upper']:.4g} |",
                flush=True,
            )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    main()
