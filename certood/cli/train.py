"""`certood train`: from a recipe to a run directory."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from certood.cli.detectors import foreign_options
from certood.cli.interruption import interruptible
from certood.cli.recipe.names import RecipeName
from certood.waiting import busy

if TYPE_CHECKING:
    from certood.train.recipe import Recipe


@click.command("train")
@click.argument("recipe", required=False, type=RecipeName())
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe key, e.g. training.epochs=5; `--set help` lists them.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/NAME]")
@click.option("--resume", is_flag=True, help="Continue the run in the run directory after its last whole epoch.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the run directory.")
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="Start from this checkpoint, or from foreign weights of the recipe's model (training.init).",
)
@click.option("--seed", type=int, help="Seed of everything random (run.seed).")
@click.option(
    "--seeds",
    metavar="SEEDS",
    help="Train a run for each of these seeds, e.g. 0-4 or 0,1,7, in OUT-SEED; the same command continues.",
)
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps (run.device).")
@click.option("--devices", type=int, help="Processes on this machine (run.devices).")
@click.option(
    "--precision", help="auto, 32-true, bf16-mixed or 16-mixed (run.precision); auto is what the device is fast at."
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the image sets (data.root).")
@click.option(
    "--guard-of",
    type=click.Path(path_type=Path),
    help="Train a certified guard of this run, checkpoint or foreign weights (guard.of); a recipe such as digits-guard.",
)
@foreign_options
@click.option("--list", "list_recipes", is_flag=True, help="Describe the built-in recipes and stop.")
def command(
    recipe: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    init: Path | None,
    seed: int | None,
    seeds: str | None,
    device: str | None,
    devices: int | None,
    precision: str | None,
    data_root: Path | None,
    guard_of: Path | None,
    list_recipes: bool,
    **foreign: str | int | None,
) -> None:
    """Train a detector by RECIPE: a built-in name or a TOML file.  [default: digits-greg-plus]

    With --guard-of the run is one detector of both networks, see docs/guards.md; the options after it describe foreign weights
    that are guarded. The run directory receives recipe.toml, checkpoint.safetensors, training.csv and evaluation.json.
    """
    from certood.cli.recipe.keys import echo_keys
    from certood.cli.recipe.listing import echo_recipes
    from certood.errors import CertoodError

    if list_recipes:
        if (
            sum(source is ParameterSource.COMMANDLINE for source in map(_source, click.get_current_context().params))
            > 1
        ):
            raise CertoodError("--list trains nothing; leave out the other arguments")
        echo_recipes()
        return
    if "help" in settings:
        echo_keys()
        return
    if resume and overwrite:
        raise CertoodError("--resume continues a run and --overwrite replaces it; leave one out")
    if seeds is not None and (seed is not None or resume):
        raise click.UsageError("--seeds names every seed and continues what is there: leave out --seed and --resume")
    if seeds is not None and any(setting.partition("=")[0].strip() == "run.seed" for setting in settings):
        raise click.UsageError("--seeds names every seed: leave out --set run.seed=…")
    named = {
        "training.init": init,
        "run.seed": seed,
        "run.device": device,
        "run.devices": devices,
        "run.precision": precision,
        "data.root": data_root,
        "guard.of": guard_of,
    }
    named |= {f"guard.{name}": _as_toml(name, value) for name, value in foreign.items()}
    if guard_of is None and any(value is not None for value in foreign.values()):
        raise click.UsageError(
            "--architecture, --classes, --input-shape, --mean and --std describe what --guard-of names"
        )
    with busy("Loading PyTorch"):
        from certood.train.recipe import DEFAULT_RECIPE, load_recipe

    options = tuple(f"{key}={value}" for key, value in named.items() if value is not None)
    loaded = load_recipe(recipe or DEFAULT_RECIPE, settings + options)
    out = out or Path("runs") / loaded.recipe
    if seeds is None:
        _train(loaded, out, resume=resume, overwrite=overwrite)
    else:
        _train_seeds(loaded, out, seeds, overwrite=overwrite)


def _as_toml(name: str, value: str | int | None) -> str | int | None:
    """An option of foreign weights as a value of a recipe: numbers separated by commas are a list."""
    return f"[{value}]" if value is not None and name in ("input_shape", "mean", "std") else value


def _source(name: str) -> ParameterSource | None:
    return click.get_current_context().get_parameter_source(name)


def _train(recipe: "Recipe", out: Path, *, resume: bool, overwrite: bool) -> None:
    with busy("Loading PyTorch"):
        from certood.evaluation import evaluation_of, evaluation_table
        from certood.train.loop import fit

    instead = " instead of --overwrite" if overwrite else ""
    with interruptible(f"Whole epochs are kept in {out}; the same command with --resume{instead} continues."):
        fit(recipe, out, resume=resume, overwrite=overwrite)
    click.echo(evaluation_table(evaluation_of(out)))
    click.echo(f"Run directory: {out}")


def _train_seeds(recipe: "Recipe", out: Path, seeds: str, *, overwrite: bool) -> None:
    with busy("Loading PyTorch"):
        from certood.evaluation import evaluation_of, one_line
        from certood.train.continuing import (
            fit_or_continue,
            inputs_of_finished,
            is_finished,
            parse_seeds,
            runs_of_seeds,
        )
        from certood.train.study import require_trainable

    runs = runs_of_seeds(recipe, out, parse_seeds(seeds), overwrite=overwrite)
    finished = [folder for folder, one in runs.items() if not overwrite and is_finished(one, folder)]
    if 0 < len(finished) < len(runs):
        require_trainable({recipe.recipe: recipe}, inputs_of_finished((folder, runs[folder]) for folder in finished))
    again = (
        "go on with --overwrite and --seeds of those that are not printed above"
        if overwrite
        else "the same command continues"
    )
    with interruptible(f"What was done is kept in {out}-SEED; {again}."):
        for folder, one in runs.items():
            before = folder in finished
            if not before:
                fit_or_continue(one, folder, overwrite=overwrite)
            click.echo(f"{folder}: {one_line(evaluation_of(folder))}{' (trained before)' if before else ''}")
