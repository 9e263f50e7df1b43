"""How a comparison is shown on a terminal."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from certood.analysis.reporting.comparison import Comparison


def print_comparison(comparison: "Comparison", *, by_set: bool = False) -> None:
    """Print the tables of a comparison, and what they rest on."""
    from rich.console import Console

    from certood.analysis.reporting.comparison_formats import comparison_tables, notes

    console = Console()
    for table in comparison_tables(comparison, by_set=by_set):
        console.print(table)
    for note in notes(comparison):
        click.echo(note)
