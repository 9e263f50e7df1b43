"""Recipes: what defines a training run, read from TOML, checked as a whole, and changed with `key=value`."""

import copy
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from certood.errors import RecipeError
from certood.train.recipe_tables import (
    CertifiedSection,
    DataSection,
    GradientSection,
    GuardSection,
    ModelSection,
    ObjectiveSection,
    OptimiserSection,
    RunSection,
    SamplerSection,
    TrainingSection,
)
from certood.train.recipes import recipe_tables
from certood.train.sections import AUTO, FamilySection, Section, unknown_key

DEFAULT_RECIPE = "digits-greg-plus"


class Recipe(Section):
    """Everything that defines a training run."""

    recipe: str = Field(description="The name; the default run directory is runs/NAME.", min_length=1)
    run: RunSection = RunSection()
    data: DataSection
    model: ModelSection = ModelSection()
    objective: ObjectiveSection = ObjectiveSection()
    gradient: GradientSection = GradientSection()
    sampler: SamplerSection = SamplerSection()
    optimiser: OptimiserSection = OptimiserSection()
    certified: CertifiedSection | None = None
    guard: GuardSection | None = None
    training: TrainingSection = TrainingSection()

    @model_validator(mode="after")
    def _outliers_need_a_source(self) -> "Recipe":
        needs = self.objective.objective.needs_outliers
        if needs and not self.data.auxiliary:
            raise ValueError(f"objective {self.objective.name!r} needs data.auxiliary, a set of auxiliary outliers")
        if (self.model.mean is None) != (self.model.std is None):
            raise ValueError("model.mean and model.std go together: give both or neither")
        if self.model.initialisation != "default" and self.training.init is not None:
            raise ValueError("model.initialisation would be overwritten by the weights of training.init: leave one out")
        if self.model.fixed_statistics and self.training.init is None:
            raise ValueError(
                "model.fixed_statistics keeps the statistics of training.init, and there is none: name a trained network (--init)"
            )
        if self.sampler.outliers > self.sampler.candidates:
            raise ValueError(
                f"sampler.outliers = {self.sampler.outliers} are picked from sampler.candidates = {self.sampler.candidates} per "
                "ID image: there must be as many candidates at least"
            )
        if self.data.validation_auxiliary and not self.data.auxiliary:
            raise ValueError("data.validation_auxiliary holds out a share of data.auxiliary, which is not given")
        return self

    @model_validator(mode="after")
    def _auto_needs_a_start(self) -> "Recipe":
        keys = " and ".join(self.automatic)
        if keys and self.training.init is None:
            raise ValueError(
                f"{keys} = 'auto' is read off a starting network, and there is none: name a trained one with training.init "
                "(--init), or give numbers"
            )
        if keys and not self.data.auxiliary:
            raise ValueError(
                f"{keys} = 'auto' is read off images and outliers: name outliers in data.auxiliary, or give numbers"
            )
        if self.objective.automatic and self.absent_class:
            raise ValueError(
                f"{keys} = 'auto' is read off scores of a starting network, and the extra class of objective "
                f"{self.objective.name!r} is not trained there: give numbers"
            )
        return self

    @model_validator(mode="after")
    def _margins_are_ordered(self) -> "Recipe":
        inside, outside = self.objective.objective.margin_in, self.objective.objective.margin_out
        if self.objective.automatic or inside is None or outside is None or not math.isfinite(inside - outside):
            return self
        if inside > outside:
            raise ValueError(
                f"expected objective.margin_in <= objective.margin_out, since ID images are to have the lower scores, got "
                f"{inside:g} and {outside:g}"
            )
        return self

    @model_validator(mode="after")
    def _guards_do_not_classify(self) -> "Recipe":
        if self.guard is not None and self.objective.objective.classifies:
            raise ValueError(
                f"objective {self.objective.name!r} trains a classifier, and table [guard] (--guard-of) joins a guard to one: "
                "take a recipe with objective.name = 'guard', such as cifar10-guard or digits-guard"
            )
        return self

    @model_validator(mode="after")
    def _certified_training_fits(self) -> "Recipe":
        if self.certified is None:
            return self
        if not self.data.auxiliary:
            raise ValueError(
                "table [certified] needs data.auxiliary, a set of auxiliary outliers, whose scores are bounded"
            )
        if self.certified.certified_term.modifies_objective and not self.objective.objective.needs_outliers:
            raise ValueError(
                f"certified.term = {self.certified.term!r} acts through the objective's outlier term, and "
                f"{self.objective.name!r} has none: choose another objective.name, such as 'logistic'"
            )
        ramp = self.certified.schedule(self.training.epochs, 1)
        if ramp.start + ramp.length > self.training.epochs:
            raise ValueError(
                f"the radius of certified training would reach eps after certified.start + certified.ramp = "
                f"{ramp.start:g} + {ramp.length:g} epochs, but training.epochs is {self.training.epochs}: shorten the ramp"
            )
        return self

    @property
    def automatic(self) -> list[str]:
        """The keys whose numbers are taken from the starting network."""
        weight = ["gradient.weight"] if self.gradient.weight == AUTO else []
        return [f"objective.{name}" for name in self.objective.automatic] + weight

    @property
    def open_keys(self) -> list[str]:
        """The keys that are "auto", and settled when training starts: those above, and the precision."""
        return [*self.automatic, *(["run.precision"] if self.run.precision == "auto" else [])]

    @property
    def uses_outliers(self) -> bool:
        """Whether a step takes auxiliary outliers."""
        return bool(self.data.auxiliary) and (
            self.objective.objective.needs_outliers or self.gradient.acts or self.certified is not None
        )

    @property
    def validation_auxiliary(self) -> float:
        """The share or number of auxiliary outliers that are held out."""
        given = self.data.validation_auxiliary
        return given if given is not None else 0.05 * (self.certified is not None)

    @property
    def guarded(self) -> Path | None:
        """The detector that the network guards; None where it guards none. Raises RecipeError for a guard of nothing."""
        named = None if self.guard is None else self.guard.of
        if named is None and not self.objective.objective.classifies:
            raise RecipeError(
                f"recipe {self.recipe!r} trains a guard, which detects only beside a classifier: name the detector that it "
                "guards with --guard-of RUN (guard.of)"
            )
        return named

    @property
    def absent_class(self) -> bool:
        """Whether the network has one more output than there are classes."""
        return self.objective.objective.absent_class

    def outputs(self, classes: int) -> int:
        """How many outputs the network has, for ID images of so many classes."""
        return classes + self.absent_class if self.objective.objective.classifies else 1

    @field_validator("recipe")
    @classmethod
    def _is_the_name_of_a_folder(cls, value: str) -> str:
        if value in (".", "..") or any(character in value for character in "/\\\0"):
            raise ValueError("the name of a recipe names its folder below runs/, and cannot hold / or \\ or be ..")
        return value

    def to_toml(self) -> dict[str, Any]:
        """Plain tables for a TOML writer: no None, paths as text."""
        return self.model_dump(mode="json", exclude_none=True)


def load_recipe(name: str, settings: Iterable[str] = ()) -> Recipe:
    """The built-in recipe of that name, or a TOML file at that path, with settings `a.b=value` applied.

    Raises RecipeError that names the key at fault and the nearest known one.
    """
    return make_recipe(_read_toml(name), settings)


def make_recipe(
    tables: Mapping[str, Any], settings: Iterable[str] = (), changes: Mapping[str, Any] | None = None
) -> Recipe:
    """A recipe of plain tables (as read from TOML); raises RecipeError.

    First `changes`, values by dotted key, are made, then settings `a.b=value`; of either, first those that choose a member of a
    family, whose parameters the others may be.
    """
    changed = copy.deepcopy(dict(tables))
    for batch in ((changes or {}).items(), map(_parsed, settings)):
        for key, value in sorted(batch, key=lambda item: not _chooses(item[0])):
            _apply(changed, key, value)
    _require_64_bits(changed, "")
    try:
        return Recipe.model_validate(changed)
    except ValidationError as error:
        raise RecipeError("; ".join(_explain(item) for item in error.errors())) from error


def _require_64_bits(value: Any, key: str) -> None:
    """Raise RecipeError for a whole number that no tensor and no generator of random numbers takes."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            _require_64_bits(part, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, int) and value.bit_length() > 63:
        raise RecipeError(f"recipe key {key!r}: expected a number of at most 64 bits (found {value})")


def sections() -> dict[str, type[Section]]:
    """The tables of a recipe by name."""
    return {
        name: kind
        for name, field in Recipe.model_fields.items()
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, Section)
    }


def known_keys() -> list[str]:
    """Every key of a recipe, dotted, with the parameters of every sampler, objective, optimiser and schedule."""
    tables = sections()
    return [
        dotted
        for name in Recipe.model_fields
        for dotted in ([f"{name}.{key}" for key in tables[name].known_keys()] if name in tables else [name])
    ]


def _read_toml(name: str) -> dict[str, Any]:
    tables = recipe_tables(name)
    tables.setdefault("recipe", Path(name).stem)
    # The record of a finished run carries what was found when it ran; it is not part of the recipe.
    tables.pop("record", None)
    return tables


def _parsed(setting: str) -> tuple[str, Any]:
    """Key and value of a setting `a.b=value`."""
    key, equals, text = setting.partition("=")
    if not equals:
        raise RecipeError(f"expected a setting of the form key=value, got {setting!r}")
    return key.strip(), _toml_value(text.strip())


def _chooses(key: str) -> bool:
    """Whether a key names a member of a family."""
    table, _, last = key.rpartition(".")
    section = sections().get(table)
    return section is not None and issubclass(section, FamilySection) and last in section.families


def _apply(tables: dict[str, Any], key: str, value: Any) -> None:
    options = key.startswith("model.options.")
    if key not in known_keys() and not options:
        raise RecipeError(unknown_key(key, known_keys()))
    *path, last = key.split(".")
    table = tables
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{part!r} is a table of the recipe, but was found to be {table!r}")
    if _chooses(key):
        section = cast(type[FamilySection], sections()[path[0]])
        tables[path[0]] = section.with_another(table, last, value)
    else:
        table[last] = value


def _toml_value(text: str) -> Any:
    """A TOML value, or the text itself where it is not one (so that strings need no quotes in a shell)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{text[:40]}… is not a value of TOML: {error}") from error


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return unknown_key(key, known_keys())
    if item["type"] == "missing":
        return (
            f"recipe key {key!r} is missing (`certood recipe new NAME --from RECIPE` starts from another recipe's keys)"
        )
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return str(message)
    return f"recipe key {key!r}: {message} (found {item['input']!r})"
