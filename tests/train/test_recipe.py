"""Recipes: built-in ones are valid, settings apply, and every mistake is named with its remedy."""

import itertools
import math
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
from pydantic import TypeAdapter

from certood.errors import RecipeError
from certood.train.objectives.cross_entropy import CrossEntropyOnly
from certood.train.objectives.energy import EnergyMargin
from certood.train.objectives.outlier_exposure import OutlierExposure
from certood.train.optimisers.adam import Adam
from certood.train.optimisers.sgd import SGD
from certood.train.recipe import DEFAULT_RECIPE, Recipe, known_keys, load_recipe, make_recipe, sections
from certood.train.recipe_tables import SamplerSection
from certood.train.recipes import recipe_names
from certood.train.samplers import SAMPLERS
from certood.train.samplers.diverse import DiverseSampler
from certood.train.samplers.random import RandomSampler
from certood.train.schedules.cosine import Cosine
from certood.train.sections import FamilySection

METHODS = {
    "digits": ("ce", "oe", "energy", "greg", "greg-plus", "certified", "certified-greg", "lipschitz", "guard"),
    "mnist": ("ce", "oe", "energy", "greg", "greg-plus", "certified", "certified-greg"),
    "cifar10": ("ce", "oe", "energy", "dos", "greg", "greg-plus", "certified", "lipschitz", "guard"),
    "cifar100": ("ce", "oe", "energy", "dos", "greg", "greg-plus"),
    "imagenet-subset": ("ce", "greg", "greg-plus"),
}


def test_the_built_in_recipes_are_those_announced() -> None:
    assert set(recipe_names()) == {f"{data}-{method}" for data, methods in METHODS.items() for method in methods}
    assert DEFAULT_RECIPE in recipe_names()


@pytest.fixture
def usual_depth() -> Iterator[None]:
    """Python's own limit of recursion, which auto_LiRPA sets to a million where another test imports it."""
    depth = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(depth)


@pytest.mark.parametrize("name", recipe_names())
def test_a_built_in_recipe_is_what_its_name_says(name: str) -> None:
    recipe = load_recipe(name)
    method = next(
        method
        for method in (
            "greg-plus",
            "certified-greg",
            "certified",
            "guard",
            "greg",
            "energy",
            "oe",
            "dos",
            "lipschitz",
            "ce",
        )
        if name.endswith(f"-{method}")
    )
    assert recipe.recipe == name
    # A finite difference is biased where a network has kinks, as all of these have.
    assert recipe.gradient.mode == "exact"
    assert (recipe.gradient.weight > 0) == ("greg" in method)
    assert (recipe.certified is not None) == method.startswith(("certified", "guard"))
    assert (recipe.guard is not None) == (method == "guard") == (not recipe.objective.objective.classifies)
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
    assert [item.set for item in recipe.data.auxiliary] == ["npz:some where.npz"]
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
        (
            "digits-ce",
            ["sampler.name=clusters"],
            "'sampler.name': unknown sampler 'clusters'; did you mean 'cluster'. Known: random, greedy, diverse, cluster",
        ),
        ("digits-ce", ["sampler.name=3"], "'sampler.name': expected the name of a sampler, found 3"),
        ("digits-ce", ["optimiser.schedule=cosinus"], "unknown schedule 'cosinus'; did you mean 'cosine'"),
        (
            "digits-ce",
            ["sampler.name=greedy", "sampler.band=0.3"],
            "'sampler.band' is a parameter of the sampler 'diverse', but sampler.name is 'greedy'; remove it",
        ),
        ("digits-ce", ["sampler.restarts=3"], "parameter of the sampler 'diverse' or 'cluster', but .* is 'random'"),
        ("digits-ce", ["optimiser.milestones=[3]"], "of the schedule 'step', but optimiser.schedule is 'cosine'"),
        ("digits-ce", ["optimiser.momentum=0.5"], "parameter of the optimiser 'sgd', but optimiser.name is 'adam'"),
        ("digits-ce", ["objective.weight=0.5"], "but objective.name is 'cross-entropy'"),
        ("digits-ce", ["sampler.bandd=0.3"], "unknown recipe key 'sampler.bandd'; did you mean 'sampler.band'"),
        (
            "digits-greg",
            ["objective.margin=0.3"],
            "unknown recipe key 'objective.margin'; did you mean 'objective.margin_",
        ),
        ("digits-energy", ["objective.margin_in=inf"], "'objective.margin_in': Input should be a finite number"),
        (
            "digits-energy",
            ["objective.name=logistic", "objective.margin_out=nan"],
            "'objective.margin_out': expected a number",
        ),
        (
            "digits-energy",
            ["objective.margin_in=-3", "objective.margin_out=-10"],
            "margin_in <= objective.margin_out.*-3 and",
        ),
        ("digits-greg-plus", ["sampler.outliers=7"], "sampler.outliers = 7 are picked from sampler.candidates = 6 per"),
        ("digits-ce", ["model.fixed_statistics=true"], "keeps the statistics of training.init, and there is none"),
        ("digits-ce", ["optimiser.schedule=step", "optimiser.milestones=[-3]"], "greater than or equal to 1"),
        ("digits-oe", ["objective.margin_out=nan"], "'objective.margin_out': expected a number, inf or -inf"),
        ("digits-ce", ["optimiser.learning_rate=inf"], "'optimiser.learning_rate': Input should be a finite number"),
        (
            "digits-ce",
            ["sampler.name=diverse", "sampler.band=1.5"],
            r"'sampler.band': Input should be less than or equal to 1 \(found 1.5\)",
        ),
        ("digits-ce", ["optimiser.learning_rate=fast"], "'optimiser.learning_rate': Input should be .* number.*'fast'"),
        ("digits-ce", ["gradient.weight=-1"], "greater than or equal to 0"),
        (
            "digits-greg",
            ["data.auxiliary=none", "objective.name=enregy"],
            "unknown objective 'enregy'; did you mean 'energy'",
        ),
        ("digits-ce", ["model.mean=[0.5]"], "mean and model.std go together"),
        (
            "digits-ce",
            ["optimizer.lr=0.1"],
            "unknown recipe key 'optimizer.lr'; did you mean 'optimiser.learning_rate'",
        ),
        ("digits-ce", ["optimizer.zzz=0.1"], "'optimizer.zzz'; known keys: optimiser.name, "),
        ("digits-ce", ["training.epochs=" + "9" * 5000], "99… is not a value of TOML: Exceeds the limit"),
        ("digits-ce", ["data.ood=" + "[" * 5000 + "]" * 5000], "… is not a value of TOML: maximum recursion"),
        ("digits-ce", ["run.seed=1" + "0" * 30], r"'run.seed': expected a number of at most 64 bits \(found 10{30}\)"),
    ],
)
@pytest.mark.usefixtures("usual_depth")
def test_mistakes_are_named(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(name, settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[data]\nid = "digits"\n[trainin]\nepochs = 3\n',
            r"unknown recipe key 'trainin'; did you mean the table \[training\]\?",
        ),
        ('[data]\nid = "digits"\n[training]\nepoch = 3\n', "did you mean 'training.epochs'"),
        ('[data]\nid = "digits"\n[sampler]\nband = 0.3\n', "parameter of the sampler 'diverse'"),
        ('[data]\nid = "digits"\n[sampler]\nname = "diverse"\nbend = 0.3\n', "did you mean 'sampler.band'"),
        ('sampler = "diverse"\n[data]\nid = "digits"\n', "'sampler': Input should be a valid dictionary"),
        ("[training]\nepochs = 3\n", "recipe key 'data' is missing .*certood recipe new NAME --from RECIPE"),
        ("[data\n", "not valid TOML"),
        pytest.param("a = " + "[" * 5000 + "]" * 5000, "not valid TOML: maximum recursion depth", id="deep"),
        pytest.param("[training]\nepochs = " + "9" * 5000, "not valid TOML: Exceeds the limit", id="digits"),
        ('[data]\nid = "digits"\n[objective]\nname = "energy"\n', "needs data.auxiliary"),
    ],
)
@pytest.mark.usefixtures("usual_depth")
def test_a_users_file_with_a_mistake_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


def test_parameters_of_members_are_keys() -> None:
    recipe = load_recipe("digits-ce", ["sampler.name=diverse", "sampler.band=0.4", "sampler.restarts=3"])
    assert recipe.sampler.sampler == DiverseSampler(band=0.4, restarts=3)
    assert recipe.optimiser.optimiser == Adam(learning_rate=2e-3, weight_decay=1e-4)
    assert recipe.optimiser.learning_rates == Cosine()
    assert load_recipe("digits-greg").objective.objective == EnergyMargin(0.1, -10.0, -3.0)
    assert {"sampler.band", "objective.kappa", "optimiser.milestones", "optimiser.momentum"} <= set(known_keys())
    assert len(known_keys()) == len(set(known_keys()))


def test_defaults_are_the_members_and_are_written_out() -> None:
    tables = make_recipe({"recipe": "mine", "data": {"id": "digits"}}).to_toml()
    assert tables["sampler"] == {"name": "random", "candidates": 6, "outliers": 1}
    assert tables["optimiser"]["momentum"] == SGD().momentum
    adam = make_recipe({"recipe": "mine", "data": {"id": "digits"}, "optimiser": {"name": "adam"}})
    assert adam.to_toml()["optimiser"]["learning_rate"] == Adam().learning_rate


def test_choosing_another_member_drops_the_parameters_of_the_one_before() -> None:
    recipe = load_recipe("cifar10-greg-plus", ["optimiser.name=adam", "optimiser.schedule=constant"])
    assert recipe.optimiser.optimiser == Adam(weight_decay=1e-4)
    assert load_recipe("digits-energy", ["objective.name=cross-entropy"]).objective.objective == CrossEntropyOnly(
        -10.0, -3.0
    )


def test_parameters_that_are_given_beside_another_member_stay_in_any_order() -> None:
    for settings in itertools.permutations(
        ["objective.name=outlier-exposure", "objective.margin_in=inf", "objective.weight=0.1"]
    ):
        assert load_recipe("digits-energy", settings).objective.objective == OutlierExposure(0.1, math.inf, -3.0)


def test_a_member_that_is_gone_or_has_parameters_without_defaults_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Soft(RandomSampler):
        heat: float

    find = SAMPLERS.find
    monkeypatch.setattr(SAMPLERS, "names", lambda: ["random", "soft"])
    monkeypatch.setattr(SAMPLERS, "find", lambda name: Soft if name == "soft" else find(name))
    tables = load_recipe("digits-energy").to_toml()
    for former in ({"name": "soft", "heat": 2.0}, {"name": "gone"}):
        changed = make_recipe({**tables, "sampler": former}, ["sampler.name=random"])
        assert changed.sampler == SamplerSection(name="random")


@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_is_changed_as_the_recipe_is(name: str) -> None:
    """As when a run's recipe.toml is trained again with another member, or an arm of a study chooses one."""
    resolved = load_recipe(name).to_toml()
    for table, section in sections().items():
        for key, family in getattr(section, "families", {}).items():
            for member in family.names():
                setting = f"{table}.{key}={member}"
                try:
                    expected: Recipe | str = load_recipe(name, [setting])
                except RecipeError as error:
                    expected = str(error)
                try:
                    found: Recipe | str = make_recipe(resolved, [setting])
                except RecipeError as error:
                    found = str(error)
                assert found == expected, (name, setting)


@pytest.mark.parametrize("table", [name for name, section in sections().items() if issubclass(section, FamilySection)])
def test_every_member_survives_being_written_and_read(table: str) -> None:
    section = sections()[table]
    assert issubclass(section, FamilySection)
    for key, family in section.families.items():
        for name, member in family.importable().items():
            tables = {
                "recipe": "mine",
                "data": {"id": "digits", "auxiliary": "digits-auxiliary"},
                "objective": {"name": "energy"},
                table: {key: name} | ({"eps": 0.1} if table == "certified" else {}),
            }
            recipe = make_recipe(tables)
            assert getattr(recipe, table).member(key) == member()
            assert make_recipe(tomllib.loads(tomli_w.dumps(recipe.to_toml()))) == recipe


def test_every_key_has_a_description() -> None:
    assert len(known_keys()) > 40
    for section in sections().values():
        assert all(field.description for field in section.model_fields.values())
        if issubclass(section, FamilySection):
            for family in section.families.values():
                for member in family.importable().values():
                    described = TypeAdapter(member).json_schema()["properties"]
                    assert all("description" in parameter for parameter in described.values()), member
