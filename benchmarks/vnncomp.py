"""Instances of a verification competition: verified, refuted by an attack, or unknown; certood beside auto_LiRPA.

A folder holds instances.csv with lines `network.onnx,property.vnnlib,seconds`, as the competitions' benchmarks and
`certood export` have it; files may be compressed (.gz). Properties are VNN-LIB 1.0. An instance is refuted where projected
gradient descent finds a counterexample that the network, in float64, confirms; it is verified where linear bounds over the box
of inputs, or over parts of it by certood's branch and bound, exclude every way of being one, within the seconds that
instances.csv and --timeout allow. Seconds are those of the bounds alone, medians over the instances that were not refuted;
reading and capturing the network is not counted, of either engine.

Without a folder, two networks are trained on the bundled digits, and the conditions of their decisions on test images are written
as properties, some true and some false.

    python benchmarks/vnncomp.py --make /tmp/properties --json vnncomp.json
    python benchmarks/vnncomp.py vnncomp2022_benchmarks/benchmarks/mnist_fc --limit 20 --methods crown alpha-crown
"""

import argparse
import contextlib
import csv
import gzip
import json
import logging
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from certood.analysis.bounds import ENGINES, Graph, analyse, capture
from certood.analysis.bounds.box import Box
from certood.analysis.bounds.branching import Effort, Functions, Mixture, branched_least
from certood.analysis.bounds.engines.auto_lirpa import AutoLirpaEngine
from certood.analysis.claims.networks import write_onnx
from certood.claims.properties import Case, Counterexamples, Property
from certood.claims.vnnlib import vnnlib_1
from certood.claims.vnnlib_reading import read_vnnlib
from certood.data import load_id, load_set, to_pixels
from certood.errors import CertoodError
from certood.models.classifier import Normalise
from certood.onnx import read_onnx
from certood.rounding import box_within
from certood.train.loop import fit
from certood.train.recipe import load_recipe

RECIPES = ("digits-greg", "digits-certified-greg")
RADII = (0.02, 0.05, 0.08, 0.12, 0.2)
# Beside the methods of the engines: certood's CROWN, then parts of the box.
BRANCHING = "branch-and-bound"
# What has a counterexample cannot be verified; so long it is tried, as a check of what tries.
REFUTED_SECONDS = 0.5


@dataclass(frozen=True)
class Instance:
    """A network and a property of it."""

    network: Path
    described: Path
    seconds: float


@dataclass
class Loaded:
    """A network as a module in float64 and as a graph, whose own module is a chain of layers where the file is one."""

    module: nn.Module
    graph: Graph
    shape: tuple[int, int, int]


def instances(folder: Path) -> list[Instance]:
    """The lines of instances.csv."""
    with (folder / "instances.csv").open(encoding="utf-8") as file:
        return [Instance(folder / line[0], folder / line[1], float(line[2])) for line in csv.reader(file) if line]


@contextlib.contextmanager
def plain(path: Path) -> Iterator[Path]:
    """A file, or what is in it where only PATH.gz is there, or PATH is compressed itself."""
    compressed = path if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    if path.suffix != ".gz" and path.exists():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / compressed.stem
        copy.write_bytes(gzip.decompress(compressed.read_bytes()))
        yield copy


def loaded(path: Path, inputs: int) -> Loaded:
    """A network whose input has so many values; one that takes vectors takes them as images of one row."""
    with plain(path) as file:
        try:
            module = read_onnx(file)
        except CertoodError:
            module = read_onnx(file, input_shape=(1, 1, inputs))
    exact = module.double().eval().requires_grad_(False)
    graph = capture(exact, torch.zeros(1, *module.image_shape).double())
    found = Loaded(exact, graph, module.image_shape)
    return replace(found, graph=replace(graph, module=as_layers(path, found)))


def as_layers(path: Path, network: Loaded) -> nn.Module:
    """A chain of layers of PyTorch that a file is, for auto_LiRPA, which does not take subtractions and divisions of the image as
    they stand there; the module as it is where the file is no such chain."""
    with plain(path) as file:
        graph = onnx.load(file).graph
    held = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    layers: list[nn.Module] = []
    channels, mean = network.shape[0], torch.zeros(())
    for node in graph.node:
        given = [held[name] for name in node.input if name in held]
        options = {part.name: helper.get_attribute_value(part) for part in node.attribute}
        match node.op_type:
            case "Sub" if not layers:
                mean = given[0].flatten()
            case "Div" if not layers:
                shape = (channels,)
                layers.append(Normalise(mean.expand(shape).tolist(), given[0].flatten().expand(shape).tolist()))
            case "Conv":
                padding = tuple(options.get("pads", (0, 0))[:2])
                stride, dilation = (tuple(options.get(name, (1, 1))) for name in ("strides", "dilations"))
                groups, (outputs, depth, *kernel) = options.get("group", 1), given[0].shape
                sizes = (depth * groups, outputs, tuple(kernel), stride, padding, dilation, groups)
                layers.append(with_weights(nn.Conv2d(*sizes), *given))
            case "Gemm" if options.get("transB", 0):
                layers.append(with_weights(nn.Linear(given[0].shape[1], len(given[0])), *given))
            case "MatMul" if given:
                layers.append(with_weights(nn.Linear(*given[0].shape), given[0].T))
            case "Add" if given and layers and isinstance(layers[-1], nn.Linear):
                layers[-1].bias.data += given[0].flatten()
            case "Relu":
                layers.append(nn.ReLU())
            case "Flatten" | "Reshape":
                layers.append(nn.Flatten())
    chain = nn.Sequential(*layers).double().eval().requires_grad_(False)
    images = torch.rand(4, *network.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        same = torch.allclose(chain(images), network.module(images), rtol=1e-9, atol=1e-9)
    except RuntimeError:
        same = False
    return chain if same else network.module


def with_weights(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    layer.weight.data = weight
    layer.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias)
    return layer


@dataclass
class Found:
    """What one engine and method found, instance by instance."""

    verified: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

    def add(self, network: Loaded, stated: Property, allowed: float, engine: str, method: str, iterations: int) -> None:
        try:
            proved, spent = verified(network, stated, engine, method, iterations, allowed)
            self.verified.append(proved and spent <= allowed)
            self.seconds.append(spent)
        except Exception as error:  # another engine, or ours on a network it does not know, raises whatever it likes
            self.problem = self.problem or f"{type(error).__name__}: {error}"
            self.verified.append(False)
            self.seconds.append(math.nan)


def refuted(network: Loaded, stated: Property, steps: int, restarts: int, seed: int) -> bool:
    """Whether an attack finds a counterexample: descent on the largest excess of a row, from random corners and points."""
    generator = torch.Generator().manual_seed(seed)
    return any(attacked(network, case, steps, restarts, generator) for case in stated.cases)


def attacked(network: Loaded, case: Case, steps: int, restarts: int, generator: torch.Generator) -> bool:
    lower, upper = (torch.from_numpy(end).view(1, *network.shape) for end in (case.lower, case.upper))
    rows, bounds = torch.from_numpy(case.rows), torch.from_numpy(case.bounds)
    start = torch.rand(restarts, *network.shape, generator=generator, dtype=torch.float64)
    start[::2] = start[::2].round()
    x = lower + start * (upper - lower)
    for step in range(steps + 1):
        x.requires_grad_(True)
        outputs = network.module(x)
        excess = (outputs @ rows.T - bounds).amax(1) if len(rows) else outputs.sum(1) - math.inf
        for place in (excess <= 0).nonzero().flatten().tolist():
            point, output = x[place].detach().numpy().ravel(), outputs[place].detach().numpy()
            if case.contains(point, output):
                return True
        if step == steps:
            break
        (gradient,) = torch.autograd.grad(excess.sum(), x)
        size = (upper - lower) * 0.25 * (1 - step / steps)
        x = torch.minimum(torch.maximum(x.detach() - size * gradient.sign(), lower), upper)
    return False


def verified(
    network: Loaded, stated: Property, engine: str, method: str, iterations: int, allowed: float = math.inf
) -> tuple[bool, float]:
    """Whether bounds exclude every case, one of whose rows stays above its bound over the whole box; and the seconds of that."""
    left, spent = list(stated.cases), 0.0
    while left:
        first = left[0]
        same = [
            one for one in left if np.array_equal(one.lower, first.lower) and np.array_equal(one.upper, first.upper)
        ]
        left = [one for one in left if not any(one is other for other in same)]
        if method == BRANCHING:
            proved, seconds = excluded_by_parts(network, same, max(allowed - spent, 1e-3))
        else:
            proved, seconds = excluded(network, same, engine, method, iterations)
        spent += seconds
        if not proved:
            return False, spent
    return True, spent


def excluded(network: Loaded, cases: Sequence[Case], engine: str, method: str, iterations: int) -> tuple[bool, float]:
    """The same for cases of one box."""
    if any(not len(case.rows) for case in cases):
        return False, 0.0
    box = Box(*(torch.from_numpy(end).view(1, *network.shape) for end in (cases[0].lower, cases[0].upper)))
    rows = torch.from_numpy(np.concatenate([case.rows for case in cases]))
    begin = time.perf_counter()
    analysis = ENGINES[engine].analyse(network.graph, box, method, iterations=iterations)  # type: ignore[arg-type]
    if engine == AutoLirpaEngine.name:
        # So far it has read the network, which has to be done once for all instances; it has bounded nothing.
        begin = time.perf_counter()
    lower = analysis.lower_rows(rows[None])[0]
    seconds = time.perf_counter() - begin
    own = zip(lower.split([len(case.rows) for case in cases]), cases, strict=True)
    return all(bool(above(part, case).any()) for part, case in own), seconds


def excluded_by_parts(network: Loaded, cases: Sequence[Case], allowed: float) -> tuple[bool, float]:
    """The same by branch and bound, within so many seconds: on every part a mean of a case's rows exceeds that of its bounds."""
    if any(not len(case.rows) for case in cases):
        return False, 0.0
    begin = time.perf_counter()
    box = Box(*(torch.from_numpy(end).view(1, *network.shape) for end in (cases[0].lower, cases[0].upper)))
    analysis = analyse(network.graph, box, "crown")  # type: ignore[arg-type]
    most = max(len(case.rows) for case in cases)
    # Cases with fewer rows repeat their first.
    order = [list(range(len(case.rows))) + [0] * (most - len(case.rows)) for case in cases]
    rows = torch.stack([torch.from_numpy(case.rows[own]) for case, own in zip(cases, order, strict=True)])
    bounds = torch.stack([torch.from_numpy(case.bounds[own]) for case, own in zip(cases, order, strict=True)])
    plain = analysis.lower_rows(rows.flatten(0, 1)[None]).view_as(bounds) - bounds
    family, numbers = Mixture(rows, -bounds), torch.arange(len(cases))
    functions = Functions(torch.zeros_like(numbers), numbers, family.start(plain), plain.amax(1), family)
    left = max(allowed - (time.perf_counter() - begin), 1e-3)
    found = branched_least(analysis, functions, Effort(math.inf, left), target=0.0)
    return bool((found > 0).all()), time.perf_counter() - begin


def above(lower: Tensor, case: Case) -> Tensor:
    """Which rows are never fulfilled: their lower bounds exceed, or reach where that is enough, what they may be at most."""
    bounds = torch.from_numpy(case.bounds)
    return (lower > bounds) | ((lower >= bounds) & torch.tensor(case.strict, dtype=torch.bool))


def measured(folder: Path, arguments: argparse.Namespace) -> list[dict[str, str | int | float | None]]:
    """The rows of the table for a folder: one for each engine and method."""
    chosen = instances(folder)
    if arguments.limit:
        chosen = [chosen[index * len(chosen) // arguments.limit] for index in range(min(arguments.limit, len(chosen)))]
    networks: dict[Path, Loaded] = {}
    pairs, skipped = [], 0
    for instance in chosen:
        with plain(instance.described) as file:
            stated = read_vnnlib(file.read_text("utf-8"), instance.described.name)
        try:
            if instance.network not in networks:
                networks[instance.network] = loaded(instance.network, stated.inputs)
            pairs.append((networks[instance.network], stated, instance.seconds))
        except CertoodError as error:
            skipped += 1
            print(f"{instance.network.name} is not read: {error}", flush=True)
    false = [refuted(network, stated, arguments.steps, arguments.restarts, 0) for network, stated, _ in pairs]
    chosen_bounds = [
        (engine, method)
        for engine in arguments.engines
        for method in arguments.methods
        if method != BRANCHING or ENGINES[engine].linear
    ]
    found = {one: Found() for one in chosen_bounds}
    for (network, stated, given), bad in zip(pairs, false, strict=True):
        allowed = min(given, arguments.timeout, REFUTED_SECONDS if bad else math.inf)
        # In turns, so that what else the machine does falls on all of them.
        for engine, method in chosen_bounds:
            found[engine, method].add(network, stated, allowed, engine, method, arguments.iterations)
    table = []
    for (engine, method), own in found.items():
        wrong = sum(one and other for one, other in zip(own.verified, false, strict=True))
        if wrong:
            raise AssertionError(f"{engine} {method} verified {wrong} instances that have a counterexample")
        seconds = [spent for spent, bad in zip(own.seconds, false, strict=True) if not (bad or math.isnan(spent))]
        if own.problem:
            print(f"{folder.name}: {engine} {method}: {own.problem}", flush=True)
        table.append(
            {
                "folder": folder.name,
                "engine": engine,
                "method": method,
                "instances": len(pairs),
                "verified": sum(own.verified),
                "refuted": sum(false),
                "unknown": len(pairs) - sum(own.verified) - sum(false),
                "skipped": skipped,
                "median_seconds": statistics.median(seconds) if seconds else None,
                "problem": own.problem or None,
            }
        )
        print(line(table[-1]), flush=True)
    return table


def line(row: dict[str, str | int | float | None]) -> str:
    seconds = row["median_seconds"]
    return (
        f"| {row['folder']} | {row['engine']} {row['method']} | {row['instances']} | {row['verified']} | {row['refuted']} "
        f"| {row['unknown']} | {math.nan if seconds is None else float(seconds):.4f} |"
    )


def make(folder: Path, images: int) -> list[Path]:
    """Train the networks of RECIPES on the digits, and write properties of them: that decisions are kept, at several radii."""
    outside = load_set("digits-near", root=Path("data"), split="test")
    found = []
    for name in RECIPES:
        place = folder / name
        (place / "vnnlib").mkdir(parents=True)
        detector = fit(load_recipe(name, ["run.device=cpu"]), folder / f"run-{name}", progress=False)
        write_onnx(detector.model, detector.input_shape, place / "network.onnx")
        assert detector.threshold is not None
        sources = [load_id("digits", root=Path("data"), recorded=detector.split).test, outside]
        chosen = [source.batch(torch.arange(images) * len(source) // images) for source in sources]
        pixels, lines = to_pixels(torch.cat(chosen)), []
        with torch.no_grad():
            logits = detector.model(pixels).double().tolist()
        for number, (image, values) in enumerate(zip(pixels.numpy(), logits, strict=True)):
            accepted = bool(detector.accepts(image[None])[0])
            condition = detector.output_score.condition(values, detector.threshold, accepted=accepted)
            assert condition is not None
            rows = tuple((row, -constant) for row, constant in zip(condition.rows, condition.constants, strict=True))
            for radius in RADII:
                lower, upper = box_within(image, radius)
                text = vnnlib_1(Counterexamples(lower[None], upper[None], rows), [f"image {number}, radius {radius}"])
                file = f"vnnlib/{number}-{radius}.vnnlib"
                (place / file).write_text(text, "utf-8")
                lines.append(f"network.onnx,{file},60\n")
        (place / "instances.csv").write_text("".join(lines), "utf-8")
        found.append(place)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with an instances.csv")
    parser.add_argument("--make", type=Path, help="folder in which to train networks and write properties")
    parser.add_argument(
        "--images", type=int, default=10, help="ID and OOD images each, about which properties are written"
    )
    parser.add_argument("--limit", type=int, help="at most so many instances of a folder, spread evenly over it")
    parser.add_argument("--methods", nargs="+", default=("crown", "alpha-crown", BRANCHING))
    parser.add_argument("--timeout", type=float, default=math.inf, help="at most so many seconds an instance")
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), help="by default all that are installed")
    parser.add_argument("--iterations", type=int, default=20, help="steps of α-CROWN")
    parser.add_argument("--steps", type=int, default=50, help="steps of the attack")
    parser.add_argument("--restarts", type=int, default=10, help="starts of the attack")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        if not (folder / "instances.csv").is_file():
            parser.error(f"{folder} has no instances.csv")
    torch.set_num_threads(arguments.threads)
    # What an engine logs about a network that it does not take is said once, in its error.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    arguments.engines = arguments.engines or installed()
    with contextlib.ExitStack() as stack:
        folders = list(arguments.folders)
        if not folders:
            place = arguments.make or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folders = make(place, arguments.images)
        print("| folder | bounds | instances | verified | refuted | unknown | median s |\n|" + "---|" * 7)
        table = [row for folder in folders for row in measured(folder, arguments)]
    print(f"\nMedian seconds of the bounds of an instance that was not refuted, {arguments.threads} thread(s).")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(table, indent=2) + os.linesep, "utf-8")


def installed() -> list[str]:
    """The engines that can be used here."""
    found = []
    for name, engine in ENGINES.items():
        with contextlib.suppress(CertoodError):
            engine.require()
            found.append(name)
    return found


if __name__ == "__main__":
    main()
