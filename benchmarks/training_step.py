"""Time and memory of a training step: ours, a plain energy step, and the authors' way, in one run, in float32 and bfloat16.

    python benchmarks/training_step.py [--network wrn-40-2] [--id 32] [--candidates 192] [--device cpu] [--json FILE]

Variants, all on the same network, batch and candidates:
  energy            cross-entropy and energy margins on ID images and outliers; no gradient term
  greg              with the exact gradient term (double backward), every gate open
  greg-difference   with the gradient term by finite difference, every gate open
  greg-plus         candidates scored, clustered, both extremes of each cluster picked, then greg (gates as they fall)
  greg-plus-lazy    the same with the gradient term in each fourth step (gradient.every = 4): a fourth of four steps
  certified         energy with lower bounds by intervals in place of the outliers' scores, at --eps; batch normalisation
                    keeps fixed statistics, as bounds need
  authors           candidates forward, features to NumPy, scikit-learn k-means with 3 restarts, forward on the picks,
                    a second train-mode forward inside torch.autograd.functional.jacobian, double backward

bfloat16 is autocast, as in training. Ours has the channels last then, as training has them on a processor; the authors' way has
the plain layout, in which double backward by PyTorch alone is faster. Seconds are medians over interleaved repeats; peak memory
is that of a process (CPU: resident size, measured in a process of its own per variant, Linux only; GPU: the allocator's peak)
less what it needs before the first step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds import DifferentiableBounds
from certood.models import build_model
from certood.scores import Energy
from certood.train.batch_statistics import fix_statistics
from certood.train.candidates import score_candidates
from certood.train.certified.bounding import CertifiedTraining
from certood.train.certified.score import CertifiedScore
from certood.train.objectives.energy import EnergyMargin
from certood.train.penalty import GradientPenalty
from certood.train.samplers.cluster import ClusterSampler
from certood.train.step import TrainingStep

VARIANTS = ("energy", "greg", "greg-difference", "greg-plus", "greg-plus-lazy", "certified", "authors")
PRECISIONS = ("float32", "bf16")
ALWAYS_OPEN = (1e9, -1e9)
LAZY = 4


def make_step(variant: str, precision: str, arguments: argparse.Namespace) -> Callable[[], None]:
    """A function that does one whole training step of this variant; of the lazy one, the steps of a period."""
    device, short = torch.device(arguments.device), precision == "bf16"
    torch.manual_seed(0)
    shape = (arguments.channels, arguments.side, arguments.side)
    mean, std = [0.5] * arguments.channels, [0.25] * arguments.channels
    model = build_model(
        arguments.network, num_classes=10, input_shape=shape, mean=mean, std=std, options=arguments.options
    )
    model = model.to(device).train()
    if short and device.type == "cpu" and variant != "authors":
        model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.rand(arguments.id, *shape, device=device)
    labels = torch.randint(10, (arguments.id,), device=device)
    candidates = torch.rand(arguments.candidates, *shape, device=device)
    fixed_picks = candidates[: 2 * arguments.id]

    def update(loss: Callable[[], Tensor]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=short):
            value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()

    def ours(margins: tuple[float, float], weight: float, mode: Any = "exact", every: int = 1) -> TrainingStep:
        return TrainingStep(model, EnergyMargin(0.1, *margins), GradientPenalty(weight, mode, every=every))

    def plain(step: TrainingStep) -> Callable[[], None]:
        return lambda: update(lambda: step(images, labels, fixed_picks).total)

    if variant == "authors":
        return lambda: update(lambda: authors_loss(model, images, labels, candidates, arguments.id))
    if variant == "certified":
        fix_statistics(model)
        bounds = CertifiedTraining(CertifiedScore(), DifferentiableBounds(model, images[:1]))
        certified = TrainingStep(model, EnergyMargin(0.1, -2.0, -2.5), GradientPenalty(), bounds)
        return lambda: update(lambda: certified(images, labels, fixed_picks, arguments.eps).total)
    if variant == "energy":
        return plain(ours((-2.0, -2.5), 0.0))
    if variant == "greg":
        return plain(ours(ALWAYS_OPEN, 0.01))
    if variant == "greg-difference":
        return plain(ours(ALWAYS_OPEN, 0.01, "finite-difference"))
    # Which gates are open is the network's affair, as in training.
    every = LAZY if variant == "greg-plus-lazy" else 1
    step, sampler = ours((-2.0, -2.5), 0.01, every=every), ClusterSampler()

    def picked_loss(number: int) -> Tensor:
        scores, features = score_candidates(model, candidates, Energy())
        picked = sampler(scores, features, arguments.id, generator)
        total: Tensor = step(images, labels, candidates[picked], number=number).total
        return total

    def period() -> None:
        for number in range(every):
            update(lambda number=number: picked_loss(number))  # type: ignore[misc]

    return period


def authors_loss(model: Any, images: Tensor, labels: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The loss of a step done the authors' way, from its description."""
    model.eval()
    with torch.no_grad():
        features = model.features(candidates)
        energies = Energy()(model.head(features).float()).cpu().numpy()
    model.train()
    normed = F.normalize(features.float(), dim=1).cpu().numpy()
    clusters = KMeans(n_clusters=count, n_init=3).fit(normed).labels_
    picked: list[int] = []
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        picked += {int(members[energies[members].argmin()]), int(members[energies[members].argmax()])}
    batch = torch.cat([images, candidates[torch.tensor(picked, device=candidates.device)]])
    logits = model(batch).float()
    energy = Energy()(logits)
    inside, outside = energy[: len(images)], energy[len(images) :]
    hinge = F.relu(inside + 2.0).square().mean() + F.relu(-2.5 - outside).square().mean()

    def mean_energies(x: Tensor) -> Tensor:
        second: Tensor = Energy()(model(x).float()).mean()
        return second

    jacobian = torch.autograd.functional.jacobian(mean_energies, batch, create_graph=True)
    norms = jacobian.flatten(1).norm(dim=1)
    gates = torch.cat([inside <= -2.0, outside >= -2.5]).to(norms.dtype)
    loss: Tensor = F.cross_entropy(logits[: len(images)], labels) + 0.1 * hinge + (gates * norms).mean()
    return loss


def clock(step: Callable[[], None], device: str) -> float:
    """Seconds of what it does."""
    began = time.perf_counter()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_memory(variant: str, precision: str, arguments: argparse.Namespace) -> float:
    """MiB that two steps need beyond the model and data, in a process of their own."""
    command = [sys.executable, __file__, "--memory-of", variant, "--memory-in", precision]
    for name in ("network", "id", "candidates", "side", "channels", "eps", "device", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    command += ["--options", json.dumps(arguments.options)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(variant: str, precision: str, arguments: argparse.Namespace) -> None:
    step = make_step(variant, precision, arguments)
    if arguments.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        step()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    # A child inherits its parent's peak on Linux, so the kernel's mark of this process is reset first.
    Path("/proc/self/clear_refs").write_text("5")
    before_kib = status_kib("VmRSS")
    step()
    step()
    print((status_kib("VmHWM") - before_kib) / 2**10)


def status_kib(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wrn-40-2")
    parser.add_argument("--id", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=192)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--eps", type=float, default=0.01, help="radius of the certified step, in pixels")
    parser.add_argument("--options", type=json.loads, default={}, help="arguments of the network, as JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="those timed, beside energy")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--memory-in", choices=PRECISIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_memory(arguments.memory_of, arguments.memory_in, arguments)
        return

    variants = [variant for variant in VARIANTS if variant in ("energy", *arguments.variants)]
    precisions = arguments.precisions
    keys = [(variant, precision) for variant in variants for precision in precisions]
    steps = {key: make_step(*key, arguments) for key in keys}
    for step in steps.values():
        step()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    for _ in range(arguments.repeats):
        for key, step in steps.items():
            period = LAZY if key[0] == "greg-plus-lazy" else 1
            times[key].append(clock(step, arguments.device) / period)
    seconds = {key: statistics.median(values) for key, values in times.items()}
    memory = {key: peak_memory(*key, arguments) if arguments.memory else None for key in keys}

    def best(variant: str) -> float | None:
        return min(seconds[variant, precision] for precision in precisions) if variant in variants else None

    ratios = {
        name: seconds[over] / below
        for name, over, below in [
            ("authors_over_gregplus", ("authors", "float32"), best("greg-plus")),
            ("authors_bf16_over_gregplus", ("authors", "bf16"), best("greg-plus")),
            ("authors_over_gregplus_lazy", ("authors", "float32"), best("greg-plus-lazy")),
            ("authors_over_gregplus_float32", ("authors", "float32"), seconds.get(("greg-plus", "float32"))),
            ("certified_over_energy", ("certified", "float32"), seconds.get(("energy", "float32"))),
        ]
        if over in seconds and below is not None
    }
    report: dict[str, Any] = {
        "network": arguments.network,
        "id": arguments.id,
        "candidates": arguments.candidates,
        "device": arguments.device,
        "torch": torch.__version__,
        "seconds": {
            variant: {precision: seconds[variant, precision] for precision in precisions} for variant in variants
        },
        "peak_memory": {
            variant: {precision: memory[variant, precision] for precision in precisions} for variant in variants
        },
        "every": LAZY,
        **{f"ratio_{name}": ratio for name, ratio in ratios.items()},
    }
    print(f"{arguments.network}, {arguments.id} ID images, {arguments.candidates} candidates, {arguments.device}\n")
    columns = "".join(f" {precision}, s | times the energy step | MiB |" for precision in precisions)
    print(f"| variant |{columns}\n|---|{'---|' * 3 * len(precisions)}")
    for variant in variants:
        cells = [
            f"{seconds[variant, precision]:.3f} | {seconds[variant, precision] / seconds['energy', precision]:.2f} | "
            + ("" if memory[variant, precision] is None else f"{memory[variant, precision]:.0f}")
            for precision in precisions
        ]
        print(f"| {variant} | {' | '.join(cells)} |")
    print()
    for name, title in [
        ("authors_over_gregplus", "authors (float32) / greg-plus (the better)"),
        ("authors_bf16_over_gregplus", "authors (bf16) / greg-plus (the better)"),
        ("authors_over_gregplus_lazy", "authors (float32) / greg-plus-lazy (the better)"),
    ]:
        if name in ratios:
            print(f"{title}: {ratios[name]:.2f}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
