"""`certood recipe new`: a recipe of one's own, begun from another."""

import re
from pathlib import Path

import click

from certood.cli.recipe.names import RecipeName


@click.command("new")
@click.argument("name")
@click.option(
    "--from",
    "source",
    required=True,
    type=RecipeName(),
    metavar="NAME",
    help="Recipe to begin with: a built-in name (certood recipe list) or a TOML file.",
)
def new(name: str, source: str) -> None:
    """Write NAME.toml into the current folder, a copy of another recipe to change; an existing file is left alone."""
    from certood.errors import RecipeError
    from certood.train.recipes import recipe_tables, recipe_text

    path = Path(f"{name.removesuffix('.toml')}.toml")
    if path.name != str(path):
        raise RecipeError(f"expected a name for a file in the current folder, got {name!r}; leave / out")
    text = recipe_text(source)
    if "recipe" in recipe_tables(source):
        # What names itself would train into the run directory of the recipe that it was copied from.
        text = re.sub(r"^recipe\s*=.*$", f'recipe = "{path.stem}"', text, count=1, flags=re.MULTILINE)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{path} exists already; choose another name, or remove it") from None
    except OSError as error:
        raise RecipeError(f"cannot write {path}: {error}") from error
    click.echo(f"Written: {path}")
    click.echo(f"Change it (certood recipe keys lists what can be set), then: certood train {path}")
