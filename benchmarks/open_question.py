"""Does gradient regularisation, besides lowering FPR95, enlarge the certified radius?

Trains the same small network by `ce`, `energy`, `greg` and `greg-plus` with several seeds, certifies test images, and prints the
benchmark beside the theory. The digits are bundled; MNIST wants mnist_train.npz, mnist_test.npz, emnist_letters_test.npz
(auxiliary outliers) and fashionmnist_test.npz in --data-root. Finished parts in --out are kept: run again to continue.

    python benchmarks/open_question.py --out study --seeds 3 --limit 64 --json study.json
    python benchmarks/open_question.py --out study --benchmark mnist --data-root DIR --epochs 5 --limit 32 --json mnist.json
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from certified_training import spread_of

from certood.analysis.certify_run import certify_sets
from certood.analysis.settings import Settings
from certood.checkpoints import load_checkpoint
from certood.errors import CertoodError
from certood.runs import RunDirectory, load_run_data
from certood.train.continuing import is_finished
from certood.train.loop import fit
from certood.train.recipe import load_recipe

RECIPES = ("ce", "energy", "greg", "greg-plus")
MNIST = (
    "data.id=npz:mnist_train.npz",
    "data.id_test=npz:mnist_test.npz",
    "data.auxiliary=npz:emnist_letters_test.npz",
    "data.ood=['npz:fashionmnist_test.npz']",
)
EPS = {"digits": (0.02, 0.01, 0.1), "mnist": (0.02, 0.1, 0.3)}


def one_run(arguments: argparse.Namespace, recipe: str, seed: int) -> dict[str, float]:
    run = Path(arguments.out) / f"{arguments.benchmark}-{recipe}-{seed}"
    settings = [f"run.seed={seed}"]
    if arguments.benchmark == "mnist":
        settings += [*MNIST, f"data.root={arguments.data_root}"]
    if arguments.epochs:
        settings.append(f"training.epochs={arguments.epochs}")
    wanted = load_recipe(f"{arguments.benchmark}-{recipe}", settings)
    if not is_finished(wanted, run):
        fit(wanted, run, resume=run.exists(), overwrite=False)
    detector = load_checkpoint(run)
    splits, sets = load_run_data(run, recorded=detector.split)
    eps = EPS[arguments.benchmark]
    result = certify_sets(
        detector, splits.test, sets, run, Settings(eps=eps), limit=arguments.limit, batch_size=32, figures=False
    )
    evaluation = json.loads(RunDirectory(run).evaluation.read_text("utf-8"))
    clean = evaluation["scores"][detector.score.name]["mean"]
    inside = next(entry for entry in result["sets"].values() if entry["kind"] == "id")
    outside = [entry for entry in result["sets"].values() if entry["kind"] == "ood"]

    def mean(key: str) -> float:
        return float(np.mean([entry[key] for entry in outside]))

    return {
        "accuracy": evaluation["accuracy"],
        "fpr95": clean["fpr95"],
        "auroc": clean["auroc"],
        "gradient_norm_id": inside["median_gradient_norm"],
        "gradient_norm_ood": mean("median_gradient_norm"),
        "margin_id": inside["median_radius_gradient"] * inside["median_gradient_norm"],
        "radius_certified_id": inside["median_radius_certified"],
        "radius_certified_ood": mean("median_radius_certified"),
        "radius_attack_id": inside["median_radius_attack"],
        "radius_attack_ood": mean("median_radius_attack"),
        **{
            f"gauc@{radius:g}": float(np.mean([entry["gauc"][place] for entry in outside]))
            for place, radius in enumerate(eps)
        },
        "violations": result["violations"],
    }


def cell(values: list[float]) -> str:
    """Mean and standard deviation, which one run has not; an attack radius is infinite where no attack succeeded."""
    return spread_of(values, 3) if np.isfinite(values).all() else "not finite in every run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--benchmark", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=64, help="images a set to certify")
    parser.add_argument("--epochs", type=int, help="epochs of training  [default: the recipe's]")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    rows = []
    for recipe in RECIPES:
        for seed in range(arguments.seeds):
            try:
                row = one_run(arguments, recipe, seed)
            except CertoodError as error:
                parser.error(str(error))
            rows.append({"benchmark": arguments.benchmark, "recipe": recipe, "seed": seed, **row})
            print(f"{recipe} seed {seed}: {row}", flush=True)
    keys = [key for key in rows[0] if key not in ("benchmark", "recipe", "seed")]
    print(f"\n| recipe | {' | '.join(keys)} |\n|---|{'---|' * len(keys)}")
    for recipe in RECIPES:
        own = [row for row in rows if row["recipe"] == recipe]
        cells = [cell([row[key] for row in own]) for key in keys]
        print(f"| {recipe} | {' | '.join(cells)} |")
    print(
        f"\nMean ± standard deviation over {arguments.seeds} seeds; radii l∞ in pixels; OOD figures are means over the sets."
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    main()
