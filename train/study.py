"""Studies: arms × seeds from one file, each arm a recipe with changes, all of them tried on the same images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError, field_validator

from certood.devices import resolve_device
from certood.errors import ArchitectureError, CheckpointError, DataError, DeviceError, RecipeError, RunDirectoryError
from certood.runs.kinds import SEED
from certood.runs.tables import flat_keys
from certood.scores import SCORES
from certood.scores.registry import score_by_name
from certood.suggestions import did_you_mean
from certood.train.continuing import Inputs, parse_seeds, require_inputs, runs_of_seeds
from certood.train.guarding import check_guarded, input_fingerprints, open_guarded
from certood.train.recipe import Recipe, load_recipe, make_recipe
from certood.train.recipe_tables import DataSection
from certood.train.recipes import read_toml
from certood.train.run_directory import different_keys
from certood.train.sections import Section
from certood.train.setup import TrainingData, build_network, count_steps, load_training_data, require_start

# Keys of [data] in which arms may differ: what is trained on besides the ID images, and how images are changed for it.
OF_AN_ARM = frozenset({"auxiliary", "validation_auxiliary", "crop_padding", "flip", "allow_shared"})


class StudySection(Section):
    """The table [study] of a study file."""

    recipe: str | None = Field(
        None, description="Recipe that arms change: a built-in name, or a TOML file beside this one."
    )
    seeds: str = Field(description='Seeds of every arm, as "0-4", "0,1,7", or a list.')
    out: Path | None = Field(
        None, description="Folder of the runs, OUT/ARM-SEED; runs/NAME of the study file if absent."
    )
    against: str | None = Field(None, description="Arm that the others are compared with; the first if absent.")
    near: tuple[str, ...] = Field((), description="OOD sets that are near the ID set, the others being far.")
    score: str | None = Field(None, description="Score by which arms are compared; each detector's own if absent.")
    set: dict[str, Any] = Field(default_factory=dict, description="Changes of every arm, keys and tables of a recipe.")
    arms: dict[str, dict[str, Any]] = Field(
        min_length=1, description="Changes by arm, keys and tables of a recipe; `recipe` names another one to change."
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _numbers_are_text(cls, value: object) -> object:
        numbers = value if isinstance(value, list) else [value]
        if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers) and numbers:
            return ",".join(map(str, numbers))
        return value

    @field_validator("near", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Study:
    """A study file with its recipes made: `arms` has every run's recipe by run directory, arm by arm."""

    file: Path
    section: StudySection
    out: Path
    arms: Mapping[str, Mapping[Path, Recipe]]

    def chosen(self, only: Sequence[str]) -> list[str]:
        """The arms to train: all, or those named.

        Raises RecipeError for one that the study does not have, and where two of them are one recipe.
        """
        for name in only:
            self.require(name)
        arms = [name for name in self.arms if not only or name in only]
        for one, other in combinations(arms, 2):
            if different_keys(self.recipe(one), self.recipe(other)) == ["recipe"]:
                raise RecipeError(
                    f"{self.file}: arms {one!r} and {other!r} are the same recipe: change one, or leave it out with --only"
                )
        return arms

    def recipe(self, name: str) -> Recipe:
        """The recipe of an arm, with its first seed."""
        return next(iter(self.arms[name].values()))

    def require(self, name: str) -> None:
        """Raise RecipeError where there is no such arm."""
        if name not in self.arms:
            hint = did_you_mean(name, self.arms)
            raise RecipeError(f"{self.file} has no arm {name!r}{hint} Its arms: {', '.join(self.arms)}")


def load_study(file: Path, settings: Iterable[str] = (), out: Path | None = None) -> Study:
    """The study in a TOML file; settings `a.b=value` change every arm after its own changes, `out` is the folder of its runs.

    Raises RecipeError for a mistake in the file or in a recipe of it, and RunDirectoryError where a run directory holds
    something else than a run of its arm and seed. No image is loaded.
    """
    section = _read(file)
    folder = out or section.out or Path("runs") / file.stem
    recipes = {name: _recipe(file, section, name, settings) for name in section.arms}
    _require_same_split(file, recipes)
    seeds = parse_seeds(section.seeds)
    arms = {name: runs_of_seeds(recipe, folder / name, seeds) for name, recipe in recipes.items()}
    study = Study(file, section, folder, arms)
    if section.against is not None:
        study.require(section.against)
    if section.score is not None:
        _require_measured(study, section.score)
    ood = next(iter(recipes.values())).data.ood
    if not ood:
        raise RecipeError(f"{file}: data.ood is empty, and arms are compared on OOD sets: name some in [study.set]")
    unknown = [name for name in section.near if name not in ood]
    if unknown:
        raise RecipeError(f"{file}: study.near names {unknown[0]!r}, which is none of data.ood: {', '.join(ood)}")
    return study


def _require_measured(study: Study, score: str) -> None:
    """Raise RecipeError where the evaluation of an arm will not have this score: it has all, with the default parameters, and the
    detector's own."""
    score_by_name(score)
    usual = [kind().label for kind in SCORES.importable().values()]
    for name in study.arms:
        own = study.recipe(name).objective.objective.score.label
        if score not in (own, *usual):
            raise RecipeError(
                f"{study.file}: study.score = {score!r} is not measured of arm {name!r}: "
                f"choose one of {', '.join(dict.fromkeys([own, *usual]))}"
            )


def require_trainable(recipes: Mapping[str, Recipe], finished: Inputs = MappingProxyType({})) -> None:
    """Raise, before anything is trained, what training one of these arms would raise before its first step.

    That is: missing sets and sets that share pictures (auxiliary outliers with a test set, above all), a network that cannot be
    built, initial weights that were trained on test images, and a device that is not there. Raises DataError as well where
    arms would be measured on different images, and RunDirectoryError where images or initial weights have changed since the
    `finished` runs of the study were trained.
    """
    loaded: dict[Any, TrainingData] = {}
    tested: dict[str, dict[str, str]] = {}
    for name, recipe in recipes.items():
        try:
            data, inputs = _prepared(recipe, loaded)
            require_inputs(finished, recipe, inputs, "what is to be trained")
        except (ArchitectureError, CheckpointError, DataError, DeviceError, RecipeError, RunDirectoryError) as error:
            if len(recipes) == 1:
                raise
            raise type(error)(f"arm {name!r}: {error}") from error
        tested[name] = {"id-test": data.id.test.fingerprint, "id-validation": data.id.validation.fingerprint}
        tested[name] |= {set_name: source.fingerprint for set_name, source in data.ood.items()}
    for (first, expected), (name, found) in pairwise(tested.items()):
        differing = [one for one in expected if found.get(one) != expected[one]]
        if differing:
            raise DataError(
                f"arms {first!r} and {name!r} would be measured on different images ({', '.join(differing)} differ); "
                "a study divides its images once: data.split_seed in [study.set], and one split for all guarded detectors"
            )


def _prepared(recipe: Recipe, loaded: dict[Any, TrainingData]) -> tuple[TrainingData, dict[str, str]]:
    """The image sets of a recipe, which are added to those that are `loaded`, and the SHA-256 of all that training reads.

    Raises what training by it would raise.
    """
    resolve_device(recipe.run.device)
    require_start(recipe)
    guarded = open_guarded(recipe)
    split = None if guarded is None else guarded.split
    key = recipe.data, recipe.validation_auxiliary, split
    if key not in loaded:
        loaded[key] = load_training_data(recipe, split)
    data = loaded[key]
    if guarded is not None:
        check_guarded(guarded, data, recipe)
    count_steps(recipe, data)
    build_network(recipe, data.id)
    return data, input_fingerprints(recipe, data, guarded)


def _read(file: Path) -> StudySection:
    try:
        tables = read_toml(str(file), file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the study {file}: {error}") from error
    strange = [name for name in tables if name != "study"]
    if "study" not in tables or strange:
        raise RecipeError(f"{file}: expected one table [study], found {', '.join(tables) or 'nothing'}")
    try:
        return StudySection.model_validate(tables["study"])
    except ValidationError as error:
        raise RecipeError(f"{file}: {'; '.join(map(_explained, error.errors()))}") from error


def _explained(item: Any) -> str:
    key = ".".join(("study", *map(str, item["loc"])))
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}; known: {', '.join(StudySection.model_fields)}"
    if item["type"] == "missing":
        return f"{key!r} is missing"
    return f"{key!r}: {item['msg'].removeprefix('Value error, ')} (found {item['input']!r})"


def _recipe(file: Path, section: StudySection, arm: str, settings: Iterable[str]) -> Recipe:
    """The recipe of an arm, of whatever seed, under the arm's name."""
    settings = tuple(settings)
    common, own = flat_keys(section.set), flat_keys(section.arms[arm])
    base = own.pop("recipe", section.recipe)
    where = f"{file}, arm {arm!r}"
    if not isinstance(base, str):
        raise RecipeError(f"{where}: study.recipe or the arm's own `recipe` must name a recipe, found {base!r}")
    named = [setting.partition("=")[0].strip() for setting in settings]
    for table, changes in (("study.set", common), (f"study.arms.{arm}", own), ("--set", named)):
        for key in (SEED, "recipe"):
            if key in changes:
                raise RecipeError(f"{file}: {table} changes {key!r}, which study.seeds and the names of arms decide")
    try:
        start = load_recipe(str(file.parent / base) if base.endswith(".toml") else base)
        changed = make_recipe(start.to_toml(), changes=common | own)
        return make_recipe(changed.to_toml(), settings, changes={"recipe": arm})
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _require_same_split(file: Path, recipes: Mapping[str, Recipe]) -> None:
    """Raise RecipeError where arms name different ID or OOD sets, or divide them differently."""
    for (first, reference), (name, recipe) in pairwise(recipes.items()):
        for key in DataSection.model_fields:
            one, other = getattr(reference.data, key), getattr(recipe.data, key)
            if key not in OF_AN_ARM and one != other:
                raise RecipeError(
                    f"{file}: arms {first!r} and {name!r} differ in data.{key} ({one!r} and {other!r}), but all arms are "
                    "measured on the same images of one split: set it in [study.set]"
                )
