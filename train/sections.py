"""Tables of a recipe, and those whose keys depend on which member of a family they choose."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from certood.errors import CertoodError, RecipeError
from certood.registry import Registry

# What a recipe says of a number that is taken from the starting network.
AUTO = "auto"


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    @classmethod
    def known_keys(cls) -> list[str]:
        """Every key that the table may have."""
        return list(cls.model_fields)


class FamilySection(Section):
    """A table that chooses a member of a family by name, and holds the member's parameters as further keys.

    `table` is its name in the recipe, and `families` says which key chooses from which family. The parameters that a recipe
    leaves out are added with the defaults of the member, which are written nowhere else. Those named in `may_be_auto` may be
    "auto": numbers that are put in their place before anything is trained; until then a member has its defaults there.
    """

    model_config = ConfigDict(extra="allow")

    table: ClassVar[str]
    families: ClassVar[Mapping[str, Registry[Any]]]
    may_be_auto: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def known_keys(cls) -> list[str]:
        """Every key that the table may have, whichever members it chooses."""
        members = (member for family in cls.families.values() for member in family.importable().values())
        parameters = {name for member in members for name in parameter_names(member)}
        return [*cls.model_fields, *sorted(parameters - cls.model_fields.keys())]

    @classmethod
    def chosen(cls, values: Mapping[str, Any]) -> dict[str, type[Any]]:
        """The member that a table with these values chooses, by the key that chooses it; raises RecipeError."""
        members = {}
        for key, family in cls.families.items():
            name = values.get(key, cls.model_fields[key].default)
            if not isinstance(name, str):
                raise RecipeError(
                    f"recipe key '{cls.table}.{key}': expected the name of a {family.family}, found {name!r}"
                )
            try:
                members[key] = family.find(name)
            except CertoodError as error:
                raise RecipeError(f"recipe key '{cls.table}.{key}': {error}") from error
        return members

    @model_validator(mode="before")
    @classmethod
    def _with_parameters(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        members = cls.chosen(values)
        known = {name for member in members.values() for name in parameter_names(member)}
        for key in values.keys() - cls.model_fields.keys() - known:
            raise RecipeError(cls._misplaced(key, values, members))
        parameters: dict[str, Any] = {}
        for member in members.values():
            given = {name: values[name] for name in parameter_names(member) if name in values}
            automatic = cls._automatic(given)
            built = _validated(member, {k: v for k, v in given.items() if k not in automatic}, cls.table)
            parameters |= {name: getattr(built, name) for name in parameter_names(member)}
            parameters |= dict.fromkeys(automatic, AUTO)
        return {**values, **parameters}

    @classmethod
    def _misplaced(cls, key: str, values: Mapping[str, Any], members: Mapping[str, type[Any]]) -> str:
        for chooser, family in cls.families.items():
            owners = [name for name, member in family.importable().items() if key in parameter_names(member)]
            if owners:
                chosen = values.get(chooser, cls.model_fields[chooser].default)
                return (
                    f"recipe key '{cls.table}.{key}' is a parameter of the {family.family} {' or '.join(map(repr, owners))}, "
                    f"but {cls.table}.{chooser} is {chosen!r}; remove it or change {cls.table}.{chooser}"
                )
        known = [*cls.model_fields, *(name for member in members.values() for name in parameter_names(member))]
        return unknown_key(f"{cls.table}.{key}", [f"{cls.table}.{name}" for name in known])

    def member(self, key: str = "name") -> Any:
        """The chosen member, made with its parameters."""
        member = self.families[key].find(getattr(self, key))
        values = self.model_extra or {}
        given = {name: values[name] for name in parameter_names(member)}
        automatic = self._automatic(given)
        return member(**{name: value for name, value in given.items() if name not in automatic})

    @property
    def automatic(self) -> list[str]:
        """The parameters that are "auto", in order."""
        return self._automatic(self.model_extra or {})

    @classmethod
    def _automatic(cls, values: Mapping[str, Any]) -> list[str]:
        return [name for name, value in values.items() if name in cls.may_be_auto and value == AUTO]

    @classmethod
    def with_another(cls, values: Mapping[str, Any], key: str, name: Any) -> dict[str, Any]:
        """The values with `name` for what `key` chooses, less the parameters that only other members have, and less those that
        are the defaults of the member before: its defaults are not those of the next."""
        former = cls.families[key].importable().get(str(values.get(key, cls.model_fields[key].default)))
        values = {**values, key: name}
        members = cls.chosen(values)
        if former is not None and members[key] is not former:
            values = {one: value for one, value in values.items() if not _is_default(former, one, value)}
        kept = {*cls.model_fields, *(name for member in members.values() for name in parameter_names(member))}
        foreign = {
            name
            for member in cls.families[key].importable().values()
            for name in parameter_names(member)
            if name not in kept
        }
        return {name: value for name, value in values.items() if name not in foreign}


def _is_default(member: type[Any], name: str, value: Any) -> bool:
    """Whether a value of a table is the default of the member's parameter of that name."""
    for field in fields(member):
        if field.name == name and field.init:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            return bool(value == (list(default) if isinstance(default, tuple) else default))
    return False


def parameter_names(member: type[Any]) -> list[str]:
    """The names of a member's parameters."""
    return [field.name for field in fields(member) if field.init]


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What is said of a key that is not known: the key that may have been meant, or those of its section, or all.

    A name may be an abbreviation, of which the letters begin the words that are meant: lr for learning_rate.
    """
    known = list(known)
    section, _, name = key.rpartition(".")
    sections = dict.fromkeys(one.rpartition(".")[0] for one in known)
    tables = [one for one in sections if one]
    near = difflib.get_close_matches(section, tables, n=1)
    if not section and (table := difflib.get_close_matches(key, tables, n=1)):
        return f"unknown recipe key {key!r}; did you mean the table [{table[0]}]?"
    inside = [one for one in known if near and one.rpartition(".")[0] == near[0]]
    names = {one.rpartition(".")[2]: one for one in inside}
    meant = [names[one] for one in difflib.get_close_matches(name, names, n=1, cutoff=0.5)]
    meant += [one for last, one in names.items() if "".join(word[0] for word in last.split("_")) == name]
    meant = meant or ([] if inside else difflib.get_close_matches(key, known, n=1, cutoff=0.6))
    hint = f"; did you mean {meant[-1]!r}?" if meant else f"; known keys: {', '.join(inside or known)}"
    return f"unknown recipe key {key!r}{hint}"


def _validated(member: type[Any], values: Mapping[str, Any], table: str) -> Any:
    try:
        return TypeAdapter(member).validate_python(dict(values))
    except ValidationError as error:
        raise RecipeError("; ".join(_explained(item, table) for item in error.errors())) from error
    except CertoodError as error:
        raise RecipeError(f"recipe table [{table}]: {error}") from error


def _explained(item: Any, table: str) -> str:
    key = ".".join(str(part) for part in (table, *item["loc"]))
    return f"recipe key {key!r}: {item['msg'].removeprefix('Value error, ')} (found {item['input']!r})"
