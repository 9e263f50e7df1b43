"""`certood study`: a comparison of arms × seeds from one file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from certood.cli.interruption import interruptible
from certood.waiting import busy

if TYPE_CHECKING:
    from certood.analysis.reporting.comparison import Comparison
    from certood.train.study import Study


@click.command("study")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, metavar="ARM", help="Train this arm only; give it once an arm.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe key in every arm, e.g. training.epochs=1 or data.root=DIR.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs.  [default: study.out, or runs/NAME]")
@click.option("--by-set", is_flag=True, help="Also a table of every OOD set at the end.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the comparison, as JSON.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Also write the comparison, as CSV.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path),
    help="Also write a leaderboard to this file: a sortable page with links to the reports of the runs.",
)
def command(
    file: Path,
    only: tuple[str, ...],
    settings: tuple[str, ...],
    out: Path | None,
    by_set: bool,
    json_file: Path | None,
    csv_file: Path | None,
    html_file: Path | None,
) -> None:
    """Train and evaluate every arm of FILE with every seed, into OUT/ARM-SEED, and compare them (see docs/studies.md).

    The same command continues: finished runs are left as they are, and started ones go on after their last whole epoch.
    """
    from certood.cli.comparing import print_comparison, require_writable, write_comparison

    with busy("Loading PyTorch"):
        from certood.train.study import load_study

    study = load_study(file, settings, out)
    arms = study.chosen(only)
    require_writable(json_file, csv_file, html_file)
    with interruptible(f"What was done is kept in {study.out}; the same command continues."):
        _train(study, arms)
        found = _compare(study)
    print_comparison(found, by_set=by_set)
    write_comparison(found, json_file, csv_file, html_file)


def _train(study: "Study", arms: list[str]) -> None:
    import time

    from certood.evaluation import evaluation_of, one_line
    from certood.runs import RunDirectory
    from certood.train.continuing import fit_or_continue, inputs_of_finished, is_finished
    from certood.train.progress import duration
    from certood.train.study import require_trainable

    finished = {
        folder: recipe for runs in study.arms.values() for folder, recipe in runs.items() if is_finished(recipe, folder)
    }
    waiting = {name: [folder for folder in study.arms[name] if folder not in finished] for name in arms}
    recipes = {name: study.recipe(name) for name, folders in waiting.items() if folders}
    require_trainable(recipes, inputs_of_finished(finished.items()))
    seconds: list[float] = []
    for name in arms:
        for folder, recipe in study.arms[name].items():
            if folder in waiting[name]:
                began, fresh = time.perf_counter(), RunDirectory(folder).empty
                fit_or_continue(recipe, folder)
                if fresh:  # a run that was continued took longer than that
                    seconds.append(time.perf_counter() - began)
            before = "" if folder in waiting[name] else " (trained before)"
            click.echo(f"{folder}: {one_line(evaluation_of(folder))}{before}")
        left = sum(len(waiting[later]) for later in arms[arms.index(name) + 1 :])
        if seconds and left and waiting[name]:
            each = sum(seconds) / len(seconds)
            click.echo(
                f"{name} is done; left: {left} of {sum(map(len, waiting.values()))} runs, about {duration(left * each)} at "
                f"{duration(each)} a run as so far."
            )


def _compare(study: "Study") -> "Comparison":
    """The comparison of all runs of the study that are finished, with its first arm that is where `against` is not."""
    from certood.analysis import compare
    from certood.train.continuing import is_finished

    finished = {
        name: [folder for folder, recipe in runs.items() if is_finished(recipe, folder)]
        for name, runs in study.arms.items()
    }
    section = study.section
    against = section.against if section.against is not None and finished[section.against] else None
    folders = [folder for own in finished.values() for folder in own]
    return compare(folders, against=against, near=section.near, score=section.score)
