"""How a comparison is shown on a terminal, and written to files."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from certood.analysis.reporting.comparison import Comparison


def require_writable(json_file: Path | None, csv_file: Path | None) -> None:
    """Raise RunDirectoryError where a file is there that is no comparison of its format."""
    from certood.analysis.reporting.comparison_formats import is_comparison_csv, is_comparison_json
    from certood.files import refuse_foreign

    for path, ours in ((json_file, is_comparison_json), (csv_file, is_comparison_csv)):
        if path is not None:
            refuse_foreign(path, ours)


def print_comparison(comparison: "Comparison", *, by_set: bool = False) -> None:
    """Print the tables of a comparison, and what they rest on."""
    from rich.console import Console

    from certood.analysis.reporting.comparison_formats import comparison_tables, notes

    console = Console()
    if not console.is_terminal:  # what is written to a file, or searched, is not folded
        console = Console(width=1000)
    for table in comparison_tables(comparison, by_set=by_set):
        console.print(table)
    for note in notes(comparison):
        click.echo(note)


def write_comparison(comparison: "Comparison", json_file: Path | None, csv_file: Path | None) -> None:
    """Write the files that are asked for, and say so; raises RunDirectoryError where one cannot be written."""
    from certood.analysis.reporting.comparison_formats import comparison_as_csv, comparison_as_json
    from certood.files import write_atomically

    for path, as_text in ((json_file, comparison_as_json), (csv_file, comparison_as_csv)):
        if path is not None:
            write_atomically(path, as_text(comparison))
            click.echo(f"Written: {path}")
