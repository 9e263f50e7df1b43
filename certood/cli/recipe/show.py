"""`certood recipe show`: a recipe as TOML."""

import click

from certood.cli.recipe.names import RecipeName
from certood.waiting import busy


@click.command("show")
@click.argument("name", type=RecipeName())
@click.option("--all", "resolved", is_flag=True, help="Every key with its value, also those left at their default.")
def show(name: str, resolved: bool) -> None:
    """Print the recipe NAME, a built-in one or a TOML file, as TOML: `certood train` takes what is printed."""
    from certood.train.recipes import recipe_text

    if not resolved:
        click.echo(recipe_text(name), nl=False)
        return
    import tomli_w

    with busy("Loading PyTorch"):
        from certood.train.recipe import load_recipe

    click.echo(tomli_w.dumps(load_recipe(name).to_toml()), nl=False)
