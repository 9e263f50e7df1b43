"""Certified training measured: accuracy, AUC, AAUC, GAUC and certified radii of several seeds, as Markdown tables.

    python benchmarks/certified_training.py --study digits --out study --json digits.json
    python benchmarks/certified_training.py --study mnist --data-root DIR --out study --json mnist.json
    python benchmarks/certified_training.py --study digits-sweep --seeds 1 --out study

Studies:
  mnist          l_inf 0.3 around test outliers, beside GOOD (Bitterwolf et al., NeurIPS 2020, arXiv 2007.08473, table 1)
  mnist-radii    which term does what: median certified radii, FPR95 and accuracy without and with each of them
  mnist-sweep    λ and ε of certified GReg, on validation images and held-out auxiliary outliers
  digits         as mnist-radii, on the bundled digits
  digits-sweep   as mnist-sweep, on the bundled digits
  cifar10        the joint network, l_inf 0.01

MNIST wants mnist_train.npz, mnist_test.npz, emnist_letters_test.npz, tinyimagenet32_aux60k.npz, fashionmnist_test.npz and
cifar10_test.npz in --data-root; CIFAR-10 wants cifar10_train.npz, cifar10_test.npz, tinyimagenet32_aux60k.npz, svhn10k.npz,
miniplaces_val10k.npz and cifar100_test.npz. A run has its own folder and its own record in --out: what is there is not done
again, several processes may share the folder with --arms, and the tables are made of the records.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certood.analysis.bounds import DifferentiableBounds, LpBall, bound
from certood.analysis.certification import question_of
from certood.analysis.certified_metrics import threat_metrics
from certood.analysis.evidence.attacks import ascend, generators, inside
from certood.analysis.evidence.direct import certified_radii
from certood.analysis.question import Question
from certood.checkpoints import load_checkpoint
from certood.data import ImageSource, to_pixels
from certood.detector import Detector
from certood.files import write_atomically
from certood.runs import RunDirectory
from certood.train.loop import fit
from certood.train.recipe import Recipe, load_recipe
from certood.train.setup import TrainingData, load_training_data

BATCH = 250
METRICS = ("auc", "aauc", "gauc")
GOOD: dict[str, tuple[float, dict[str, tuple[float, float, float]]]] = {
    "GOOD80, published": (99.1, {"Fashion-MNIST": (99.8, 90.3, 55.5), "letters": (97.9, 63.1, 3.4)}),
    "GOOD100, published": (98.7, {"Fashion-MNIST": (100, 96.5, 78.0), "letters": (99.0, 53.8, 3.3)}),
}
PHOTOGRAPHS = "npz:tinyimagenet32_aux60k.npz?colour=grey&size=28"
LETTERS = "npz:emnist_letters_test.npz?classes=A-M"
MNIST = (
    "data.id=npz:mnist_train.npz",
    "data.id_test=npz:mnist_test.npz",
    f"data.auxiliary=['{LETTERS}', '{PHOTOGRAPHS}']",
)
MNIST_SETS = {
    "Fashion-MNIST": "npz:fashionmnist_test.npz",
    "letters n–z": "npz:emnist_letters_test.npz?classes=N-Z",
    "CIFAR-10 grey": "npz:cifar10_test.npz?colour=grey&size=28",
    "noise": "npz:{out}/noise-1x28x28.npz",
}
CIFAR10 = (
    "data.id=npz:cifar10_train.npz",
    "data.id_test=npz:cifar10_test.npz",
    "data.auxiliary=npz:tinyimagenet32_aux60k.npz",
)
CIFAR10_SETS = {
    "SVHN": "npz:svhn10k.npz",
    "MiniPlaces": "npz:miniplaces_val10k.npz",
    "CIFAR-100": "npz:cifar100_test.npz",
}


@dataclass(frozen=True)
class Arm:
    """A way to train: a recipe with settings, without its table [certified] where `certified` is false."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    certified: bool = True


@dataclass(frozen=True)
class Study:
    """Arms that are trained on the same sets, and what is measured of them.

    `eps` is the radius of the metrics, `method` that of their bounds; `limit` images of each set. With `radii` median certified
    radii of so many images of each set are measured. With `validation` everything is measured on validation images and
    held-out auxiliary outliers, so that settings can be chosen.
    """

    arms: tuple[Arm, ...]
    eps: float
    data: tuple[str, ...] = ()
    sets: Mapping[str, str] = field(default_factory=dict)
    method: str = "crown"
    limit: int = 1000
    radii: int = 0
    validation: bool = False


def ablation(recipe: str, *settings: str) -> tuple[Arm, ...]:
    """Certified GReg without each of its terms, and energy margins on the same network with as many steps."""
    plain = ("objective.name=energy", "objective.weight=0.1", "objective.margin_in=-10.0", "objective.margin_out=-3.0")
    return (
        Arm(
            "energy", recipe, (*settings, *plain, "gradient.weight=0", "model.initialisation=default"), certified=False
        ),
        Arm("neither", recipe, (*settings, "gradient.weight=0"), certified=False),
        Arm("gradient", recipe, settings, certified=False),
        Arm("certified", recipe, (*settings, "gradient.weight=0")),
        Arm("both", recipe, settings),
    )


def sweep(recipe: str, weights: Sequence[float], radii: Sequence[float], *settings: str) -> tuple[Arm, ...]:
    """Certified GReg over λ of the gradient term and ε."""
    return tuple(
        Arm(f"λ {weight:g}, ε {eps:g}", recipe, (*settings, f"gradient.weight={weight}", f"certified.eps={eps}"))
        for eps in radii
        for weight in weights
    )


LOGISTIC = ("objective.name=logistic", "objective.kappa=0.1", "objective.start=-4.3")
STUDIES = {
    "mnist": Study((Arm("certified", "mnist-certified"),), eps=0.3, data=MNIST, sets=MNIST_SETS, method="interval"),
    "mnist-radii": Study(
        ablation("mnist-certified-greg"),
        eps=0.1,
        data=MNIST,
        sets=dict(list(MNIST_SETS.items())[:2]),
        limit=100,
        radii=100,
    ),
    "mnist-sweep": Study(
        (
            *sweep("mnist-certified-greg", (0.01, 0.03, 0.1), (0.05, 0.1), *LOGISTIC),
            *(
                Arm(f"margins {weight:g}, λ {gradient:g}", "mnist-certified-greg", settings)
                for weight, gradient in ((0.1, 0.01), (0.02, 0.01), (0.02, 0.03))
                for settings in [(f"objective.weight={weight}", f"gradient.weight={gradient}")]
            ),
        ),
        eps=0.1,
        data=MNIST,
        sets=MNIST_SETS,
        limit=100,
        radii=50,
        validation=True,
    ),
    "digits": Study(ablation("digits-certified-greg"), eps=0.1, limit=100, radii=100),
    "digits-sweep": Study(
        sweep("digits-certified-greg", (0, 0.03, 0.1, 0.3), (0.02, 0.05, 0.1)),
        eps=0.1,
        limit=100,
        radii=100,
        validation=True,
    ),
    "cifar10": Study(
        (Arm("joint network", "cifar10-certified"),), eps=0.01, data=CIFAR10, sets=CIFAR10_SETS, method="interval"
    ),
}


def recipe_of(study: Study, arm: Arm, seed: int, out: Path, root: Path) -> Recipe:
    """The recipe of a run; all arms hold out the same auxiliary outliers."""
    sets = [name.format(out=out.resolve()) for name in study.sets.values()]
    common = [f"run.seed={seed}", "run.device=cpu", f"data.root={root}", "data.validation_auxiliary=0.05", *study.data]
    if sets:
        common.append(f"data.ood={json.dumps(sets)}")
    recipe = load_recipe(arm.recipe, [*common, *arm.settings])
    return recipe if arm.certified else recipe.model_copy(update={"certified": None})


def write_noise(path: Path) -> None:
    """1,000 images of independent uniform pixels, always the same."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 28, 28), dtype=np.uint8)
    np.savez(path, images=noise)


def spread(source: ImageSource, count: int) -> Tensor:
    """At most so many images of a set, spread evenly over it, in pixels and float64."""
    count = min(count, len(source))
    return to_pixels(source.batch(torch.arange(count) * len(source) // count)).double()


def lowest_attacked(
    detector: Detector, question: Question, images: Tensor, eps: float, steps: int, restarts: int
) -> Tensor:
    """The lowest scores (N,) in float64 that an attack finds in the balls of images (N, C, H, W); it searches in float32."""
    model = copy.deepcopy(detector.model).float()
    radius = torch.full((len(images),), eps)
    found = []
    for start in range(0, len(images), BATCH):
        part, size = images[start : start + BATCH], radius[start : start + BATCH]
        random = generators(0, range(start, start + len(part)))
        _, where = ascend(
            lambda points: -detector.output_score(model(points)),
            part.float(),
            size,
            math.inf,
            random=random,
            steps=steps,
            restarts=restarts,
        )
        with torch.no_grad():
            found.append(question.scores(inside(where.double(), part, size.double(), math.inf)))
    return torch.cat(found)


def median_radius(question: Question, images: Tensor, kind: str) -> float:
    """The median certified radius, by CROWN; 0 for an image that is decided wrongly."""
    points = images.clone().requires_grad_()
    scores = question.scores(points)
    (slope,) = torch.autograd.grad(scores.sum(), points)
    accepted = scores.detach() <= question.threshold
    guess = 0.35 * (scores.detach() - question.threshold).abs() / slope.flatten(1).norm(1, dim=1).clamp_min(1e-9)
    right = accepted == (kind == "id")
    radii = torch.zeros(len(images), dtype=torch.float64)
    if right.any():
        radii[right] = certified_radii(
            question, images[right], accepted[right], method="crown", guess=guess[right].clamp(1e-6, 1.0)
        )
    return float(radii.median())


def measured(detector: Detector, study: Study, data: TrainingData, arguments: argparse.Namespace) -> dict[str, Any]:
    """The metrics and radii of a trained detector, and how far the bounds that trained it are from those that count."""
    question = question_of(detector)
    if study.validation:
        assert data.auxiliary_validation is not None
        ours, sets = data.id.validation, {part.name: part for part in data.auxiliary_validation.parts}
    else:
        ours = data.id.test
        labels = study.sets or {name: name for name in data.ood}
        sets = dict(zip(labels, data.ood.values(), strict=True))
    limit = arguments.limit or study.limit
    trained_bounds = DifferentiableBounds(detector.model, torch.zeros(1, *detector.input_shape))
    images_in = spread(ours, limit)
    with torch.no_grad():
        scores_in = question.scores(images_in)
    record: dict[str, Any] = {"sets": {}, "violations": 0, "difference_of_training_bounds": 0.0}
    for name, source in sets.items():
        images = spread(source, limit)
        with torch.no_grad():
            scores = question.scores(images)
            lower = torch.cat(
                [
                    bound(question.graph, LpBall(part, study.eps), study.method, score=question.score).lower
                    for part in images.split(BATCH)
                ]
            )
            own = trained_bounds(images[:BATCH].float(), study.eps)
            engine = bound(question.graph, LpBall(images[:BATCH], study.eps), "interval").lower
            difference = float((own.lower.double() - engine).abs().max() / engine.abs().max())
        # Where no ID score lies between bound and score, nothing that an attack finds there changes a metric.
        between = torch.searchsorted(scores_in.sort().values, torch.stack([lower, scores])).diff(dim=0)[0] > 0
        attacked = scores.clone()
        if between.any():
            attacked[between] = lowest_attacked(
                detector, question, images[between], study.eps, arguments.steps, arguments.restarts
            )
        record["violations"] += int((lower > torch.minimum(attacked, scores)).sum())
        record["difference_of_training_bounds"] = max(record["difference_of_training_bounds"], difference)
        found = threat_metrics(scores_in, scores, attacked, lower, question.threshold)
        record["sets"][name] = {"n": len(images), **{key: getattr(found, key) for key in (*METRICS, "fpr95")}}
        if study.radii:
            record["sets"][name]["radius"] = median_radius(question, spread(source, study.radii), "ood")
    if study.radii:
        record["radius_id"] = median_radius(question, spread(ours, study.radii), "id")
    return record


def one_run(name: str, arm: Arm, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of a run; trained and measured where that was not done before."""
    study, out = STUDIES[name], Path(arguments.out)
    label = f"{name}-{study.arms.index(arm)}-{seed}"
    path = out / f"{label}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    recipe = recipe_of(study, arm, seed, out, Path(arguments.data_root).resolve())
    run = RunDirectory(out / label)
    began = time.process_time()
    if not (run.checkpoint.is_file() and run.evaluation.is_file()):
        fit(recipe, run.folder, resume=run.recipe.is_file(), progress=arguments.progress)
    trained = time.process_time() - began
    detector = load_checkpoint(run.folder)
    data = load_training_data(recipe)
    evaluation = json.loads(run.evaluation.read_text("utf-8"))
    record: dict[str, Any] = {"study": name, "arm": arm.name, "seed": seed, "training_minutes": trained / 60}
    if study.validation:
        last = run.training.read_text("utf-8").splitlines()
        record["accuracy"] = float(dict(zip(last[0].split(","), last[-1].split(","), strict=True))["accuracy"])
    else:
        own = evaluation["scores"][evaluation["score"]]
        record |= {"accuracy": evaluation["accuracy"], "fpr95": own["mean"]["fpr95"], "auroc": own["mean"]["auroc"]}
    record |= measured(detector, study, data, arguments)
    if study.validation:
        record["fpr95"] = float(np.mean([entry["fpr95"] for entry in record["sets"].values()]))
    record["minutes"] = (time.process_time() - began) / 60
    write_atomically(path, json.dumps(record, indent=2) + "\n")
    return record


def spread_of(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± sample standard deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def table(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The records of a study as a Markdown table, a row an arm; radii in a table of their own."""
    study = STUDIES[name]
    sets = list(dict.fromkeys(label for record in records for label in record["sets"]))
    grouped = {arm.name: own for arm in study.arms if (own := [one for one in records if one["arm"] == arm.name])}

    def metrics(own: Sequence[Mapping[str, Any]], label: str) -> str:
        known = [record["sets"][label] for record in own if label in record["sets"]]
        return " / ".join(spread_of([100 * entry[key] for entry in known]) for key in METRICS) if known else "–"

    rows = [
        [
            arm,
            str(len(own)),
            spread_of([100 * record["accuracy"] for record in own], 2),
            spread_of([100 * record["fpr95"] for record in own]),
            *(metrics(own, label) for label in sets),
        ]
        for arm, own in grouped.items()
    ]
    if name == "mnist":
        for arm, (accuracy, published) in GOOD.items():
            values = [next((v for key, v in published.items() if one.startswith(key)), None) for one in sets]
            cells = ["–" if one is None else " / ".join(f"{part:g}" for part in one) for one in values]
            rows.append([arm, "–", f"{accuracy}", "–", *cells])
    found = markdown(["training", "seeds", "accuracy", "FPR95", *sets], rows)
    if study.radii:
        radii = [
            [
                arm,
                spread_of([record["radius_id"] for record in own], 4),
                *(spread_of([record["sets"][label]["radius"] for record in own], 4) for label in sets),
            ]
            for arm, own in grouped.items()
        ]
        found += "\n\n" + markdown(["median certified radius", "ID", *sets], radii)
    return found


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=tuple(STUDIES), default="digits")
    parser.add_argument("--out", required=True, help="folder of runs and records")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", help="of the study  [default: all]")
    parser.add_argument("--limit", type=int, help="images a set for the metrics  [default: the study's]")
    parser.add_argument("--steps", type=int, default=100, help="of the attack")
    parser.add_argument("--restarts", type=int, default=5, help="of the attack")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--progress", action="store_true", help="a bar while a run trains")
    parser.add_argument("--tables", action="store_true", help="make the table of the records that are there, and stop")
    parser.add_argument("--json", help="file for the records")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    study, out = STUDIES[arguments.study], Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    if study.sets is MNIST_SETS and not (out / "noise-1x28x28.npz").is_file():
        write_noise(out / "noise-1x28x28.npz")
    unknown = set(arguments.arms or ()) - {arm.name for arm in study.arms}
    if unknown:
        parser.error(f"no arm {sorted(unknown)} in {arguments.study}: {[arm.name for arm in study.arms]}")
    if not arguments.tables:
        chosen = [arm for arm in study.arms if not arguments.arms or arm.name in arguments.arms]
        for seed in range(arguments.seeds):
            for arm in chosen:
                record = one_run(arguments.study, arm, seed, arguments)
                print(f"{arguments.study}, {arm.name}, seed {seed}: {json.dumps(record)}", flush=True)
    paths = sorted(out.glob(f"{arguments.study}-[0-9]*-[0-9]*.json"))
    records = [json.loads(path.read_text("utf-8")) for path in paths]
    where = "validation images" if study.validation else "test images"
    print(f"\n{arguments.study}, l_inf {study.eps:g}, {where}; per cent, radii in pixels\n")
    print(table(arguments.study, records))
    print("\nSets: AUC / AAUC / GAUC. Mean ± sample standard deviation over the seeds.")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(records, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
