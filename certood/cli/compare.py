"""`certood compare`: arms of several seeds beside each other."""

from pathlib import Path

import click

from certood.cli.comparing import near_option, print_comparison, require_writable, run_folders, write_comparison
from certood.waiting import busy


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", metavar="ARM", help="The arm that the others are compared with.  [default: the first]")
@near_option
@click.option("--score", metavar="SCORE", help="Compare all arms by this score.  [default: each by its detector's own]")
@click.option("--by-set", is_flag=True, help="Also a table of every OOD set.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Also write all numbers to this file, as JSON."
)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Also write all numbers to this file, as CSV.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path),
    help="Also write a leaderboard to this file: a sortable page with links to the reports of the runs.",
)
def command(
    runs: tuple[Path, ...],
    against: str | None,
    near: tuple[str, ...],
    score: str | None,
    by_set: bool,
    json_file: Path | None,
    csv_file: Path | None,
    html_file: Path | None,
) -> None:
    """Compare RUNS, directories or hf:OWNER/NAME that were evaluated: mean ± standard deviation over seeds, paired differences.

    Runs whose recipe.toml agree in every key but run.seed (and where they ran, and run.trackers) are one arm; it is called by
    its folders, without the seed. Differences are of runs with the same seed, with the 95 % interval of Student's paired t.
    Runs that were measured on different images are refused, and plain files among RUNS skipped.
    """
    from certood.analysis import compare

    require_writable(json_file, csv_file, html_file)
    folders = run_folders(runs)
    with busy("Reading the runs"):
        found = compare(folders, against=against, near=near, score=score)
    print_comparison(found, by_set=by_set)
    write_comparison(found, json_file, csv_file, html_file)
