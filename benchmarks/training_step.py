"""Time and memory of a training step: ours, a plain energy step, and the authors' way, in one run.

    python benchmarks/training_step.py [--network wrn-40-2] [--id 32] [--candidates 192] [--device cpu] [--json FILE]

Variants, all on the same network, batch and candidates:
  energy            cross-entropy and energy margins on ID images and outliers; no gradient term
  greg-exact        with the gradient term by double backward, every gate open
  greg-fd           with the gradient term by finite difference, every gate open
  greg-fd-closed    the same with every gate closed
  greg-plus         candidates scored, clustered, both extremes of each cluster picked, then greg-fd (gates as they fall)
  greg-plus-exact   the same with the exact gradient term
  certified         energy with lower bounds by intervals in place of the outliers' scores, at --eps; batch normalisation
                    keeps fixed statistics, as bounds need
  authors           candidates forward, features to NumPy, scikit-learn k-means with 3 restarts, forward on the picks,
                    a second train-mode forward inside torch.autograd.functional.jacobian, double backward

Seconds are medians over interleaved repeats; peak memory is that of a process (CPU: resident size, measured in a process
of its own per variant, Linux only; GPU: the allocator's peak) less what it needs before the first step.
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

VARIANTS = ("energy", "greg-exact", "greg-fd", "greg-fd-closed", "greg-plus", "greg-plus-exact", "certified", "authors")
ALWAYS_OPEN, ALWAYS_CLOSED = (1e9, -1e9), (-1e9, 1e9)


def make_step(variant: str, arguments: argparse.Namespace) -> Callable[[], None]:
    """A function that does one whole training step of this variant."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    shape = (arguments.channels, arguments.side, arguments.side)
    mean, std = [0.5] * arguments.channels, [0.25] * arguments.channels
    model = build_model(
        arguments.network, num_classes=10, input_shape=shape, mean=mean, std=std, options=arguments.options
    )
    model = model.to(device).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.rand(arguments.id, *shape, device=device)
    labels = torch.randint(10, (arguments.id,), device=device)
    candidates = torch.rand(arguments.candidates, *shape, device=device)
    fixed_picks = candidates[: 2 * arguments.id]

    def update(loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def ours(margins: tuple[float, float], mode: Any, weight: float) -> TrainingStep:
        return TrainingStep(model, EnergyMargin(0.1, *margins), GradientPenalty(weight, mode))

    if variant == "authors":
        return lambda: update(authors_loss(model, images, labels, candidates, arguments.id))
    if variant == "certified":
        fix_statistics(model)
        bounds = CertifiedTraining(CertifiedScore(), DifferentiableBounds(model, images[:1]))
        certified = TrainingStep(model, EnergyMargin(0.1, -2.0, -2.5), GradientPenalty(), bounds)
        return lambda: update(certified(images, labels, fixed_picks, arguments.eps).total)
    if variant.startswith("greg-plus"):
        mode = "exact" if variant.endswith("exact") else "finite-difference"
        # The paper's margins; which gates are open is the network's affair, as in training.
        step, sampler = ours((-2.0, -2.5), mode, 0.01), ClusterSampler()

        def greg_plus() -> None:
            scores, features = score_candidates(model, candidates, Energy(), 512)
            picked = sampler(scores, features, arguments.id, generator)
            update(step(images, labels, candidates[picked]).total)

        return greg_plus
    if variant == "energy":
        step = ours((-2.0, -2.5), "exact", 0.0)
    elif variant == "greg-exact":
        step = ours(ALWAYS_OPEN, "exact", 0.01)
    else:
        step = ours(ALWAYS_CLOSED if variant.endswith("closed") else ALWAYS_OPEN, "finite-difference", 0.01)
    return lambda: update(step(images, labels, fixed_picks).total)


def authors_loss(model: Any, images: Tensor, labels: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The loss of a step done the authors' way, from its description."""
    model.eval()
    with torch.no_grad():
        features = model.features(candidates)
        energies = Energy()(model.head(features)).cpu().numpy()
    model.train()
    normed = F.normalize(features, dim=1).cpu().numpy()
    clusters = KMeans(n_clusters=count, n_init=3).fit(normed).labels_
    picked: list[int] = []
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        picked += {int(members[energies[members].argmin()]), int(members[energies[members].argmax()])}
    batch = torch.cat([images, candidates[torch.tensor(picked, device=candidates.device)]])
    logits = model(batch)
    energy = Energy()(logits)
    inside, outside = energy[: len(images)], energy[len(images) :]
    hinge = F.relu(inside + 2.0).square().mean() + F.relu(-2.5 - outside).square().mean()

    def mean_energies(x: Tensor) -> Tensor:
        second: Tensor = Energy()(model(x)).mean()
        return second

    jacobian = torch.autograd.functional.jacobian(mean_energies, batch, create_graph=True)
    norms = jacobian.flatten(1).norm(dim=1)
    gates = torch.cat([inside <= -2.0, outside >= -2.5]).to(norms.dtype)
    loss: Tensor = F.cross_entropy(logits[: len(images)], labels) + 0.1 * hinge + (gates * norms).mean()
    return loss


def clock(step: Callable[[], None], device: str) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_memory(variant: str, arguments: argparse.Namespace) -> float:
    """MiB that two steps need beyond the model and data, in a process of their own."""
    command = [sys.executable, __file__, "--memory-of", variant]
    for name in ("network", "id", "candidates", "side", "channels", "eps", "device", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    command += ["--options", json.dumps(arguments.options)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(variant: str, arguments: argparse.Namespace) -> None:
    step = make_step(variant, arguments)
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
    parser.add_argument("--json")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_memory(arguments.memory_of, arguments)
        return

    steps = {variant: make_step(variant, arguments) for variant in VARIANTS}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.repeats):
        for variant, step in steps.items():
            times[variant].append(clock(step, arguments.device))
    seconds = {variant: statistics.median(values) for variant, values in times.items()}
    memory = {variant: peak_memory(variant, arguments) for variant in VARIANTS}
    report = {
        "network": arguments.network,
        "id": arguments.id,
        "candidates": arguments.candidates,
        "device": arguments.device,
        "torch": torch.__version__,
        "seconds": seconds,
        "peak_memory": memory,
        "ratio_authors_over_gregplus": seconds["authors"] / seconds["greg-plus"],
        "ratio_authors_over_gregplus_exact": seconds["authors"] / seconds["greg-plus-exact"],
        "ratio_fd_over_energy": seconds["greg-fd"] / seconds["energy"],
        "ratio_exact_over_energy": seconds["greg-exact"] / seconds["energy"],
        "ratio_certified_over_energy": seconds["certified"] / seconds["energy"],
    }
    print(f"{arguments.network}, {arguments.id} ID images, {arguments.candidates} candidates, {arguments.device}\n")
    print("| variant | seconds | times the energy step | peak memory, MiB |")
    print("|---|---|---|---|")
    for variant in VARIANTS:
        ratio = seconds[variant] / seconds["energy"]
        print(f"| {variant} | {seconds[variant]:.3f} | {ratio:.2f} | {memory[variant]:.0f} |")
    print(f"\nauthors / greg-plus: {report['ratio_authors_over_gregplus']:.2f}", end="")
    print(f"; with the exact term: {report['ratio_authors_over_gregplus_exact']:.2f}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
