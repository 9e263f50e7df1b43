"""`certood recipe`: what recipes there are, what they say, what can be set, and how to start one's own."""

import click

from certood.cli.recipe.explain import explain
from certood.cli.recipe.keys import keys
from certood.cli.recipe.listing import list_recipes
from certood.cli.recipe.new import new
from certood.cli.recipe.show import show


@click.group("recipe")
def command() -> None:
    """List, show, explain and write recipes."""


for part in (list_recipes, show, keys, new, explain):
    command.add_command(part)
