"""`certood demo`: the whole path on bundled images, in about two minutes."""

from pathlib import Path

import click

RECIPES = ("ce", "energy", "greg", "greg-plus")


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Images a set to certify.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of training.  [default: the recipes' own]")
@click.option("--seed", type=int, default=0, show_default=True)
def command(out: Path, limit: int, epochs: int | None, seed: int) -> None:
    """Train, evaluate, certify and compare four detectors of the bundled digits; run again, it resumes."""
    from certood.analysis import report
    from certood.analysis.certify_run import certify_sets
    from certood.analysis.settings import Settings
    from certood.checkpoints import CHECKPOINT_FILE, load_checkpoint
    from certood.run_data import load_run_data
    from certood.train.loop import fit
    from certood.train.recipe import load_recipe

    settings = [f"run.seed={seed}", "run.device=cpu"] + ([f"training.epochs={epochs}"] if epochs else [])
    runs = [out / name for name in RECIPES]
    for place, (name, run) in enumerate(zip(RECIPES, runs, strict=True), start=1):
        click.echo(f"[{place}/{len(RECIPES)}] digits-{name}")
        if (run / CHECKPOINT_FILE).is_file():
            click.echo(f"  trained before: {run}")
        else:
            click.echo(f"  training and evaluating -> {run}/checkpoint.safetensors, training.csv, evaluation.json")
            fit(load_recipe(f"digits-{name}", settings), run, resume=run.exists(), overwrite=False, progress=False)
        detector = load_checkpoint(run)
        splits, sets = load_run_data(run)
        click.echo(
            f"  certifying {limit} images of each of {1 + len(sets)} sets -> {run}/certificates.csv, certification.json, figures/"
        )
        result = certify_sets(
            detector, splits.test, sets, run, Settings(eps=(0.02, 0.005, 0.05), samples=8), limit=limit
        )
        inside = result["sets"][splits.test.name]
        click.echo(
            f"  median radius of ID images: certified {inside['median_radius_certified']:.4f}, "
            f"attack {inside['median_radius_attack']:.4f}; {result['violations']} violations"
        )
    page = out / "report.html"
    report(runs, page)
    click.echo(f"Report: {page} (open it in a browser)")
