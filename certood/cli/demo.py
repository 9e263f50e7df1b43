"""`certood demo`: the whole path on bundled images, in about three minutes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certood.cli.interruption import interruptible
from certood.waiting import busy

if TYPE_CHECKING:
    from certood.analysis.settings import Settings
    from certood.detector import Detector
    from certood.train.recipe import Recipe

RECIPES = ("ce", "energy", "greg", "greg-plus", "certified-greg")
RADII = (0.02, 0.05, 0.1)


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder of the runs.",
)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Images a set to certify.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of training.  [default: the recipes' own]")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of training and of certification."
)
@click.option("--overwrite", is_flag=True, help="Start anew, instead of continuing what is there.")
def command(out: Path, limit: int, epochs: int | None, seed: int, overwrite: bool) -> None:
    """Train, evaluate, certify and compare five detectors of the bundled digits, the last by certified training.

    What is done already is skipped, so that the same command continues after an interruption.
    """
    with busy("Loading PyTorch"):
        import torch

        from certood.analysis import report
        from certood.analysis.reporting.curves import write_fractions
        from certood.analysis.reporting.runs import read_runs
        from certood.analysis.settings import Settings, with_fast_rows

    # Images of 8×8 pixels gain nothing from more threads, which wait for each other on a busy machine.
    torch.set_num_threads(1)
    settings = with_fast_rows(Settings(eps=RADII, seed=seed), torch.device("cpu"))
    recipes = [_recipe(name, seed, epochs) for name in RECIPES]
    runs = [out / name for name in RECIPES]
    with interruptible(f"What was done is kept in {out}; the same command continues."):
        for place, (recipe, run) in enumerate(zip(recipes, runs, strict=True), start=1):
            click.echo(f"[{place}/{len(RECIPES)}] {run.name}")
            _train(recipe, run, overwrite=overwrite)
            _certify(run, settings, limit, overwrite=overwrite)
        page = out / "report.html"
        click.echo(f"comparing the {len(RECIPES)} runs -> {page}")
        report(runs, page)
        write_fractions(read_runs(runs), out / "radii.png")
    click.echo(f"Report: {page} (open it in a browser)")


def _recipe(name: str, seed: int, epochs: int | None) -> "Recipe":
    """A recipe of the demo; the ramp of certified training shrinks or grows with the number of epochs."""
    from certood.train.recipe import load_recipe

    settings = [f"run.seed={seed}", "run.device=cpu"]
    recipe = load_recipe(f"digits-{name}", settings)
    if epochs is None:
        return recipe
    settings.append(f"training.epochs={epochs}")
    if recipe.certified is not None:
        whole, share = recipe.certified.schedule(recipe.training.epochs, 1), epochs / recipe.training.epochs
        settings += [
            f"certified.start={share * whole.start}",
            f"certified.ramp={share * whole.length}",
            f"optimiser.decay_start={share * (whole.start + whole.length)}",
        ]
    return load_recipe(f"digits-{name}", settings)


def _train(recipe: "Recipe", run: Path, *, overwrite: bool) -> None:
    import sys

    from certood.evaluation import evaluation_of, one_line
    from certood.train.continuing import fit_or_continue, is_finished

    if not overwrite and is_finished(recipe, run):
        click.echo(f"  trained and evaluated before: {run}")
    else:
        click.echo(f"  training and evaluating -> {run}/ checkpoint.safetensors, training.csv, evaluation.json")
        fit_or_continue(recipe, run, overwrite=overwrite, progress=sys.stderr.isatty())
    click.echo(f"    {one_line(evaluation_of(run))}")


def _certify(run: Path, settings: "Settings", limit: int, *, overwrite: bool) -> None:
    from certood.analysis.certify_run import certify_sets
    from certood.checkpoints import load_checkpoint
    from certood.runs import load_run_data

    detector = load_checkpoint(run)
    splits, sets = load_run_data(run, recorded=detector.split)
    images = {source.name: source.fingerprint for source in (splits.test, *sets.values())}
    result = None if overwrite else _certified_before(run, settings, limit, detector, images)
    if result is not None:
        click.echo(f"  certified before: {run}")
    else:
        click.echo(
            f"  certifying up to {limit} images of each of {1 + len(sets)} sets -> {run}/ certificates.csv, "
            "certification.json, figures/"
        )
        result = certify_sets(detector, splits.test, sets, run, settings, limit=limit, overwrite=overwrite)
    inside = result["sets"][splits.test.name]
    click.echo(
        f"    median radius of ID images: certified {_radius(inside['median_radius_certified'])}, "
        f"attack {_radius(inside['median_radius_attack'])}; violations: {result['violations']}"
    )


def _certified_before(
    run: Path, settings: "Settings", limit: int, detector: "Detector", images: dict[str, str]
) -> dict[str, Any] | None:
    """What certification.json holds where it is about this detector, these images and settings; else None."""
    import json

    from certood.errors import RunDirectoryError
    from certood.runs import RunDirectory
    from certood.runs.directory import read_json
    from certood.runs.identity import certificates_hash, detector_identity
    from certood.runs.schema import CertificationFile, read_checked

    files = RunDirectory(run)
    try:
        result = read_checked(files.certification, CertificationFile)
        made = read_json(files.certification_settings)
        if result is None or made is None or result.get("certificates_sha256") != certificates_hash(files.certificates):
            return None
    except RunDirectoryError:
        return None
    about = {"limit": limit, "sets": images, "detector": detector_identity(detector)}
    wanted = json.loads(json.dumps(settings.record() | about))
    same = result.get("detector") == wanted["detector"] and all(made.get(key) == wanted[key] for key in wanted)
    return result if same else None


def _radius(value: float | None) -> str:
    return "none found" if value is None else f"{value:.4f}"
