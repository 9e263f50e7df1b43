"""Names of recipes on the command line, which a shell completes."""

import click
from click.shell_completion import CompletionItem


class RecipeName(click.ParamType[str]):
    """A built-in recipe's name or the path of a TOML file; what it holds is checked when it is read."""

    name = "recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The built-in names that begin so, and files."""
        from certood.train.recipes import recipe_names

        names = [CompletionItem(name) for name in recipe_names() if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]
