"""`certood recipe list`: the built-in recipes, a line each."""

from itertools import groupby

import click


@click.command("list")
def list_recipes() -> None:
    """List the built-in recipes by their in-distribution set: name, epochs, and what each one is."""
    echo_recipes()


def echo_recipes() -> None:
    """Print the list, which also is what `certood train --list` prints."""
    from certood.train.recipes import recipe_names, recipe_tables, recipe_text, recipe_title

    tables = {name: recipe_tables(name) for name in recipe_names()}
    width = max(map(len, tables))
    click.echo(f"  {'recipe':<{width}}  epochs  what it is")
    for data, names in groupby(tables, lambda name: str(tables[name]["data"]["id"])):
        click.echo(data)
        for name in names:
            epochs = tables[name]["training"]["epochs"]
            click.echo(f"  {name:<{width}}  {epochs:>6}  {recipe_title(recipe_text(name))}")
