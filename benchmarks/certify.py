"""Certified radii per second: ours, against a bisection that calls auto_LiRPA's CROWN for every probe.

    python benchmarks/certify.py [--images 32] [--batch 16] [--data npz:FILE] [--json FILE]

Network: conv 3×3 stride 2 (32), conv 3×3 stride 2 (64), linear 128, linear 10, with ReLU, on 32×32×3 images. It is trained for a
few steps on the labelled images of `--data`, or on random patterns, one a class, with noise. Ours and the bisection have the
same network, images, score (energy), norm (l_inf), γ (the median of the scores, so that half of the images are accepted and
half rejected), dtype and bounds of the score from rows of the logits.

The bisection halves [0, --upper] twelve times, for a whole batch at once, so that it knows its radius to upper/4096. Ours is
asked for the relative tolerance (upper/4096) / (median radius of the bisection): at the median radius both are as exact.
auto_LiRPA has its best case: it parses the network once, before the clock starts, computes its intermediate bounds once a
probe, and only lower bounds where only these are read. No radius may reach `--upper`. Seconds are those of the processor, which
on an idle machine and one thread are those of the clock.
"""

import argparse
import contextlib
import io
import json
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.analysis.bounds import Bounds, Graph, LpBall, capture, logits_of
from certood.analysis.bounds.engines.auto_lirpa import AutoLirpa
from certood.analysis.evidence.direct import certified_radii
from certood.analysis.evidence.estimates import gradient_norms
from certood.analysis.question import Question
from certood.data import load_set, to_pixels
from certood.scores import Energy

STEPS = 12


class Oracle(AutoLirpa):
    """auto_LiRPA on one ball after the other, without parsing the network again."""

    def at(self, ball: LpBall) -> "Oracle":
        self.ball, self.intermediate = ball, None
        return self

    def rows(self, coefficients: Tensor, constant: Tensor | None = None) -> Bounds:
        assert constant is None
        lower, upper = self._bounds(coefficients, upper=True)
        return Bounds(lower, upper, self.method)

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        return self._bounds(coefficients, upper=False)[0]

    def _bounds(self, rows: Tensor, *, upper: bool) -> tuple[Tensor, Tensor]:
        network = self._networks[0]
        ends = (end.to(self.dtype) for end in (self.ball.lower, self.ball.upper))
        region = self.package.PerturbationLpNorm(norm=math.inf, **dict(zip(("x_L", "x_U"), ends, strict=True)))
        image = self.package.BoundedTensor(self.ball.centre.to(self.dtype), region)
        rows = rows.to(self.dtype)
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = network.compute_bounds(
                x=(image,), C=rows, method="CROWN", bound_upper=upper, intermediate_layer_bounds=self.intermediate
            )
        if self.intermediate is None:
            nodes = [relu.inputs[0] for relu in network.relus]
            self.intermediate = {node.name: (node.lower.detach(), node.upper.detach()) for node in nodes}
        lower, upper_bounds = (None if part is None else part.double() for part in found)
        return lower, upper_bounds


def trained(images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """The network, trained so far that its scores are no longer those of random weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 8 * 8, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(steps):
        batch = torch.randint(len(images), (128,))
        optimiser.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
    return model.double().eval()


def patterns(count: int) -> tuple[Tensor, Tensor]:
    """Images that a class's blurred random pattern shapes, with noise; and their classes."""
    torch.manual_seed(1)
    coarse = F.interpolate(torch.rand(10, 3, 6, 6), size=32, mode="bilinear")
    labels = torch.arange(count) % 10
    return (coarse[labels] + 0.15 * torch.randn(count, 3, 32, 32)).clamp(0, 1), labels


def bisected(question: Question, oracle: Oracle, images: Tensor, accepted: bool, upper: float) -> Tensor:
    low, high = torch.zeros(len(images)).double(), torch.full((len(images),), upper).double()
    for _ in range(STEPS):
        middle = (low + high) / 2
        kept = question.margin_bounds(logits_of(oracle.at(LpBall(images, middle))), accepted) > 0
        low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
    return low


def ours(question: Question, images: Tensor, accepted: bool, tolerance: float, dtype: torch.dtype) -> Tensor:
    margins = (question.scores(images) - question.threshold).abs().detach()
    guess = (0.7 if accepted else 0.35) * margins / gradient_norms(question, images)
    decisions = torch.full((len(images),), accepted)
    return certified_radii(question, images, decisions, method="crown", tolerance=tolerance, guess=guess, dtype=dtype)


@dataclass(frozen=True)
class Side:
    name: str
    count: int
    median: float
    seconds: float
    bisection_seconds: float
    difference: float
    tolerance: float


def compared(question: Question, batches: Sequence[Tensor], accepted: bool, upper: float, dtype: torch.dtype) -> Side:
    """Both on the accepted or on the rejected images."""
    oracles = [Oracle(question.graph, LpBall(batch, 1e-3), dtype=dtype) for batch in batches]
    question.margin_bounds(
        logits_of(oracles[0].at(LpBall(batches[0], 1e-3))), accepted
    )  # both are warm when the clock starts
    ours(question, batches[0][:1], accepted, 0.1, dtype)
    begin = time.process_time()
    reference = torch.cat(
        [bisected(question, oracle, batch, accepted, upper) for oracle, batch in zip(oracles, batches, strict=True)]
    )
    middle = time.process_time()
    tolerance = upper / 2**STEPS / float(reference.median())
    found = torch.cat([ours(question, batch, accepted, tolerance, dtype) for batch in batches])
    end = time.process_time()
    if float(reference.max()) >= upper * (1 - 2 / 2**STEPS):
        raise SystemExit(f"a radius reaches --upper {upper}; give a larger one")
    # A radius below a step of the bisection is 0 there.
    difference = float(((found - reference).abs() / reference.clamp_min(upper / 2**STEPS)).max())
    name = "accepted" if accepted else "rejected"
    return Side(name, len(found), float(reference.median()), end - middle, middle - begin, difference, tolerance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="images whose radii are certified")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--data", help="a labelled set with 32×32×3 images and 10 classes, e.g. npz:FILE; else patterns"
    )
    parser.add_argument("--training-steps", type=int, default=150)
    parser.add_argument("--upper", type=float, default=0.1, help="upper end of the bisection, in pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="of both")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.images < 2:
        parser.error("--images must be at least 2, of which one is accepted and one is rejected")
    torch.set_num_threads(arguments.threads)
    if arguments.data:
        source = load_set(arguments.data, root=Path())
        chosen = torch.arange(0, len(source), max(1, len(source) // 5000))
        pixels, labels = to_pixels(source.batch(chosen)), source.labels[chosen]
    else:
        pixels, labels = patterns(2000)
    model = trained(pixels, labels, arguments.training_steps)
    images = pixels[:: len(pixels) // arguments.images][: arguments.images].double()
    graph: Graph = capture(model, images[:1])
    with torch.no_grad():
        scores = Energy()(graph(images))
    question = Question(graph, Energy(), float(scores.quantile(0.5)))
    sides = []
    for accepted in (True, False):
        batches = images[(scores <= question.threshold) == accepted].split(arguments.batch)
        sides.append(compared(question, batches, accepted, arguments.upper, getattr(torch, arguments.dtype)))
    print(
        f"{arguments.images} images, batches of {arguments.batch}, {arguments.threads} thread(s), {arguments.dtype}, CROWN,"
    )
    print(f"bisection of [0, {arguments.upper:g}] in {STEPS} steps\n")
    print(
        "| side | images | median radius | radii/s | radii/s of the bisection | ratio | largest relative difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for side in sides:
        speed, other = side.count / side.seconds, side.count / side.bisection_seconds
        print(
            f"| {side.name} | {side.count} | {side.median:.5f} | {speed:.2f} | {other:.2f} | {speed / other:.1f} "
            f"| {side.difference:.4f} (tolerance {side.tolerance:.4f}) |"
        )
    total, own, other = (sum(getattr(side, key) for side in sides) for key in ("count", "seconds", "bisection_seconds"))
    result = {
        "radii_per_second": total / own,
        "bisection_radii_per_second": total / other,
        "ratio": other / own,
        "max_relative_difference": max(side.difference for side in sides),
    }
    print(
        f"| both | {total} | | {total / own:.2f} | {total / other:.2f} | {other / own:.1f} "
        f"| {result['max_relative_difference']:.4f} |"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
