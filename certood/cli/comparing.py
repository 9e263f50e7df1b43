"""What the commands about several runs share: their options, and how a comparison is shown and written."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from certood.analysis.reporting.comparison import Comparison


near_option = click.option(
    "--near",
    multiple=True,
    metavar="SET",
    help="OOD set that is near the ID set, the others being far; give it once a set.  [default: as evaluated, else sets "
    "named *-near]",
)


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The given paths without plain files, such as a glob finds beside the runs, and a line on stderr that says so.

    Raises RunDirectoryError where nothing is left.
    """
    from certood.errors import RunDirectoryError

    files = [path for path in paths if path.is_file()]
    if files:
        names = ", ".join(path.as_posix() for path in files)
        if len(files) == len(paths):
            raise RunDirectoryError(f"expected run directories, got files: {names}")
        click.echo(f"Skipped, since these are files and no run directories: {names}", err=True)
    return [path for path in paths if path not in files]


def require_writable(json_file: Path | None, csv_file: Path | None, html_file: Path | None = None) -> None:
    """Raise RunDirectoryError where a file is there that is no comparison of its format."""
    from certood.analysis.reporting.comparison_formats import is_comparison_csv, is_comparison_json
    from certood.analysis.reporting.rendering import is_page
    from certood.files import refuse_foreign

    for path, ours in ((json_file, is_comparison_json), (csv_file, is_comparison_csv), (html_file, is_page)):
        if path is not None:
            refuse_foreign(path, ours)


def print_comparison(comparison: "Comparison", *, by_set: bool = False) -> None:
    """Print the tables of a comparison, and what they rest on."""
    from certood.analysis.reporting.comparison_formats import comparison_tables, notes

    for table in comparison_tables(comparison, by_set=by_set):
        click.echo(f"{table}\n")
    for note in notes(comparison):
        click.echo(note)


def write_comparison(
    comparison: "Comparison", json_file: Path | None, csv_file: Path | None, html_file: Path | None = None
) -> None:
    """Write the files that are asked for, and say so; raises RunDirectoryError where one cannot be written."""
    from certood.analysis.reporting.comparison_formats import comparison_as_csv, comparison_as_json
    from certood.files import write_atomically

    for path, as_text in ((json_file, comparison_as_json), (csv_file, comparison_as_csv)):
        if path is not None:
            write_atomically(path, as_text(comparison))
            click.echo(f"Written: {path}")
    if html_file is not None:
        from certood.analysis.reporting.leaderboard import write_leaderboard

        write_leaderboard(comparison, html_file)
        click.echo(f"Written: {html_file}")
