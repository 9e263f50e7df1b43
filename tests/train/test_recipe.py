"""Recipes: built-in ones are valid, settings apply, and every mistake is named with its remedy."""

from pathlib import Path

import pytest

from certood.errors import RecipeError
from certood.train.recipe import DEFAULT_RECIPE, known_keys, load_recipe, make_recipe, recipe_names

METHODS = {
    "digits": ("ce", "oe", "energy", "greg", "greg-plus"),
    "mnist": ("ce", "oe", "energy", "greg", "greg-plus"),
    "cifar10": ("ce", "oe", "energy", "dos", "greg", "greg-plus"),
    "cifar100": ("ce", "oe", "energy", "dos", "greg", "greg-plus"),
    "imagenet-subset": ("ce", "greg", "greg-plus"),
}


def test_the_built_in_recipes_are_those_announced() -> None:
    assert set(recipe_names()) == {f"{data}-{method}" for data, methods in METHODS.items() for method in methods}
    assert DEFAULT_RECIPE in recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_a_built_in_recipe_is_what_its_name_says(name: str) -> None:
    recipe = load_recipe(name)
    method = next(
        method for method in ("greg-plus", "greg", "energy", "oe", "dos", "ce") if name.endswith(f"-{method}")
    )
    assert recipe.recipe == name
    assert (recipe.gradient.weight > 0) == method.startswith("greg")
    assert (recipe.sampler.name == "cluster") == (method == "greg-plus")
    assert recipe.uses_outliers == (method != "ce")
    assert recipe.absent_class == (method == "dos")


def test_settings_take_the_type_of_toml_and_leave_the_rest() -> None:
    recipe = load_recipe("digits-greg", ["training.epochs=3", "data.ood=['digits-near']", "model.options.width=8"])
    assert recipe.training.epochs == 3
    assert recipe.data.ood == ("digits-near",)
    assert recipe.model.options == {"width": 8}
    assert recipe.gradient == load_recipe("digits-greg").gradient


def test_text_needs_no_quotes_and_nothing_means_none() -> None:
    recipe = load_recipe("cifar10-greg", ["data.auxiliary=npz:some where.npz", "training.init="])
    assert recipe.data.auxiliary == "npz:some where.npz"
    assert recipe.training.init is None


def test_a_recipe_survives_being_written_and_read(tmp_path: Path) -> None:
    recipe = load_recipe("cifar10-greg-plus")
    assert make_recipe(recipe.to_toml()) == recipe


def test_a_file_of_the_user_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[data]\nid = "digits"\n')
    assert load_recipe(str(path)).recipe == "mine"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("digits-gerg", [], "unknown recipe 'digits-gerg'; did you mean 'digits-greg'"),
        ("missing.toml", [], "cannot read the recipe missing.toml"),
        ("digits-ce", ["training.epoch=3"], "unknown recipe key 'training.epoch'; did you mean 'training.epochs'"),
        ("digits-ce", ["training.epochs"], "form key=value, got 'training.epochs'"),
        ("digits-ce", ["training.epochs=many"], "'training.epochs': Input should be a valid integer.*found 'many'"),
        ("digits-ce", ["training.epochs=0"], "greater than or equal to 1"),
        ("digits-ce", ["sampler.name=clusters"], "'random', 'greedy', 'diverse' or 'cluster'"),
        ("digits-ce", ["gradient.weight=-1"], "greater than or equal to 0"),
        ("digits-greg", ["data.auxiliary=none", "objective.name=enregy"], "Input should be 'cross-entropy'"),
        ("digits-ce", ["model.mean=[0.5]"], "mean and model.std go together"),
    ],
)
def test_mistakes_are_named(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(name, settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\nid = "digits"\n[trainin]\nepochs = 3\n', "unknown recipe key 'trainin'"),
        ('[data]\nid = "digits"\n[training]\nepoch = 3\n', "did you mean 'training.epochs'"),
        ("[training]\nepochs = 3\n", "recipe key 'data' is missing"),
        ("[data\n", "not valid TOML"),
        ('[data]\nid = "digits"\n[objective]\nname = "energy"\n', "needs data.auxiliary"),
    ],
)
def test_a_users_file_with_a_mistake_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


def test_every_key_has_a_description() -> None:
    assert len(known_keys()) > 30
