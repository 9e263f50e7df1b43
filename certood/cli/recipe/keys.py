"""`certood recipe keys`: every key of a recipe, with its default, its range and its meaning."""

import shutil
import sys
import textwrap

import click

from certood.waiting import busy


@click.command("keys")
@click.argument("table", required=False)
def keys(table: str | None) -> None:
    """List every key of a recipe, or those of TABLE alone, e.g. training: its default, its range, and what it means.

    Keys are set in a TOML file, or with --set KEY=VALUE of `certood train`.
    """
    echo_keys(table)


def echo_keys(table: str | None = None) -> None:
    """Print the keys, which also is what `certood train --set help` prints."""
    with busy("Loading PyTorch"):
        from certood.errors import RecipeError
        from certood.train.recipe_keys import described_tables

    tables = described_tables()
    if table is not None and table not in tables:
        raise RecipeError(f"unknown recipe table {table!r}; expected one of: {', '.join(filter(None, tables))}")
    for name, (meaning, described) in tables.items():
        if table not in (None, name):
            continue
        if name:
            click.echo(_filled(f"[{name}]  {meaning}", 0))
        for key in described:
            default = "" if key.default is None else f" = {key.default}"
            owners = f"  with {key.of}" if key.of else ""
            click.echo(f"  {key.name}{default}{owners}")
            click.echo(_filled(f"{key.range}. {key.meaning}", 6))
        click.echo()


def _filled(text: str, indent: int) -> str:
    """A paragraph, folded at words on a terminal alone: what is piped is searched by lines."""
    start = indent * " "
    if not sys.stdout.isatty():
        return start + text
    return textwrap.fill(text, shutil.get_terminal_size().columns, initial_indent=start, subsequent_indent=6 * " ")
