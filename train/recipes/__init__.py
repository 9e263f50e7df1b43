"""The built-in recipes, one TOML file each, as text: nothing here needs torch."""

import importlib.resources
import tomllib
from pathlib import Path
from typing import Any

from certood.errors import RecipeError
from certood.suggestions import did_you_mean


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    files = importlib.resources.files(__name__).iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML of the built-in recipe of that name, or of the file at that path.

    Raises RecipeError that names the nearest built-in recipe, or says why the file cannot be read.
    """
    if name in recipe_names():
        return importlib.resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8")
    if name.endswith(".toml"):
        try:
            return Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {name}: {error}") from error
    names = recipe_names()
    raise RecipeError(
        f"unknown recipe {name!r}{did_you_mean(name, names)} Expected a path that ends in .toml or one of: {', '.join(names)}"
    )


def read_toml(name: str, text: str) -> dict[str, Any]:
    """The tables of a TOML text; raises RecipeError that names the file."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and values nested as deep
        raise RecipeError(f"{name} is not valid TOML: {error}") from error


def recipe_tables(name: str) -> dict[str, Any]:
    """The tables of `recipe_text(name)`, neither checked nor completed; raises RecipeError where it is no TOML."""
    return read_toml(name, recipe_text(name))


def recipe_title(text: str) -> str:
    """What a recipe is, in a few words: the comment in its first line; empty where there is none."""
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
