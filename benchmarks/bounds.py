"""Bounds of logits by certood and by auto_LiRPA (the field's reference engine): tightness and time, in one run.

Both bound the logits of the same network around the same images, l_inf, by the same method, α-CROWN in as many iterations.
auto_LiRPA computes in float32, its default, with the patches mode for convolutions; ours in float64, and with the rows of
intermediate layers in float32 and their rounding subtracted. Ours tells the memory allocator to keep freed blocks, which serves
both. `products` is the share of our time (float64) that goes into matrix products and convolutions; the rest moves memory:
relaxing, gathering and adding up rows. Times are medians over the repeats, in which the engines take turns, after one run that is
not counted; ratios are of one run of this script. auto_LiRPA is optional: `uv sync`.

    python benchmarks/bounds.py --threads 1 --json bounds.json
    python benchmarks/bounds.py --networks cnn --batches 16 --methods crown
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.analysis.bounds import Bounds, LpBall, bound, capture
from certood.analysis.bounds.engines.auto_lirpa import AutoLirpa
from certood.errors import CertoodError

EPS = 2 / 255
PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::_slow_conv2d_forward", "aten::slow_conv_transpose2d")


class SmallResNet(nn.Module):
    """A stem and two residual blocks with batch normalisation, the second of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.one, self.two = self._pair(8, 8, 1), self._pair(8, 16, 2)
        self.short, self.out = nn.Conv2d(8, 16, 1, 2), nn.Linear(16 * 64, 10)

    @staticmethod
    def _pair(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.one(x) + x)
        x = F.relu(self.two(x) + self.short(x))
        logits: Tensor = self.out(x.flatten(1))
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "mlp": (mlp, (1, 28, 28)),
    "cnn": (cnn, (3, 32, 32)),
    "resnet": (SmallResNet, (3, 32, 32)),
}


def network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for _ in range(5):
            model(torch.rand(64, *shape))
    return model.eval(), shape


def timed(calls: Sequence[Callable[[], Bounds]], repeats: int, patience: float) -> list[tuple[float, Bounds]]:
    """Median seconds of each call, and its bounds.

    The calls take turns, so that what else the machine does falls on all of them. Those that take longer than `patience` are
    timed once.
    """
    found, seconds = [], []
    for call in calls:
        begin = time.perf_counter()
        found.append(call())
        seconds.append([time.perf_counter() - begin])
    quick = [place for place, (first,) in enumerate(seconds) if first < patience]
    for place in quick:
        seconds[place] = []
    for _ in range(repeats):
        for place in quick:
            begin = time.perf_counter()
            calls[place]()
            seconds[place].append(time.perf_counter() - begin)
    return [(statistics.median(one), bounds) for one, bounds in zip(seconds, found, strict=True)]


def product_share(call: Callable[[], Bounds]) -> float:
    """The share of the processor's time that products take, in per cent."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return 100 * sum(time for name, time in times.items() if name in PRODUCTS) / sum(times.values())


def compared(name: str, batch: int, method: str, arguments: argparse.Namespace) -> dict[str, str | int | float | None]:
    model, shape = network(name)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(1))
    graph, ball = capture(model, x), LpBall(x, EPS)
    rows = torch.eye(10, dtype=torch.float64).expand(batch, -1, -1)

    def ours(dtype: torch.dtype) -> Callable[[], Bounds]:
        return lambda: bound(graph, ball, method, iterations=arguments.iterations, dtype=dtype)

    calls = [ours(torch.float64), ours(torch.float32)]
    try:
        engine = AutoLirpa(graph, ball, method, iterations=arguments.iterations, dtype=torch.float32)
        calls.append(lambda: engine.rows(rows))
    except CertoodError as error:
        print(f"auto_LiRPA: {error}", flush=True)
    (seconds, own), (seconds32, own32), *others = timed(calls, arguments.repeats, arguments.patience)
    theirs = others[0] if others else None
    return {
        "network": name,
        "batch": batch,
        "method": method,
        "seconds": seconds,
        "seconds_float32": seconds32,
        "auto_lirpa_seconds": None if theirs is None else theirs[0],
        "mean_width": float(own.width.mean()),
        "mean_width_float32": float(own32.width.mean()),
        "auto_lirpa_mean_width": None if theirs is None else float(theirs[1].width.mean()),
        "products_percent": product_share(calls[0]) if seconds < arguments.patience else None,
    }


def line(row: dict[str, str | int | float | None]) -> str:
    def number(key: str) -> float:
        value = row[key]
        return math.nan if value is None else float(value)

    ratio, ratio32 = (number("auto_lirpa_seconds") / number(key) for key in ("seconds", "seconds_float32"))
    return (
        f"| {row['network']} | {row['batch']} | {row['method']} | {number('seconds'):.4f} | {number('seconds_float32'):.4f} "
        f"| {number('auto_lirpa_seconds'):.4f} | {ratio:.2f} | {ratio32:.2f} | {number('mean_width'):.5g} "
        f"| {number('mean_width_float32'):.5g} | {number('auto_lirpa_mean_width'):.5g} "
        f"| {number('products_percent'):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 16, 128))
    parser.add_argument(
        "--methods", nargs="+", choices=("interval", "crown-ibp", "crown", "alpha-crown"), default=("interval", "crown")
    )
    parser.add_argument("--iterations", type=int, default=20, help="steps of α-CROWN")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--patience", type=float, default=10.0, help="a call that takes longer is timed once, in seconds"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        "| network | batch | method | s float64 | s float32 | s auto_LiRPA | auto_LiRPA / float64 | / float32 "
        f"| width float64 | width float32 | width auto_LiRPA | products % |\n|{'---|' * 12}"
    )
    rows = []
    for name in arguments.networks:
        for method in arguments.methods:
            for batch in arguments.batches:
                rows.append(compared(name, batch, method, arguments))
                print(line(rows[-1]), flush=True)
    print(
        f"\nSeconds a call, {arguments.threads} thread(s), l_inf, ε = 2/255; widths are means over images and logits."
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    main()
