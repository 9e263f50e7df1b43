"""What can be set in a recipe: every key with its default, its range and its meaning, read off the models that check it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from certood.train.recipe import Recipe, sections
from certood.train.sections import AUTO, FamilySection, Section

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
KINDS = {
    "array": "list",
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "object": "table",
    "string": "text",
}


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    `name` is dotted; `default` as TOML has it, None where the key may be absent or must be given, which `range` says. `of`
    names the members of a family whose parameter it is, empty for a key that is always there.
    """

    name: str
    default: str | None
    range: str
    meaning: str
    of: str = ""


def described_tables() -> dict[str, tuple[str, list[Key]]]:
    """The meaning and the keys of every table of a recipe, by its name; the key that is in no table is under the name ""."""
    tables = sections()
    schema = Recipe.model_json_schema()
    top = [_key(name, part, schema) for name, part in schema["properties"].items() if name not in tables]
    found = {"": ("", top)}
    for name, section in tables.items():
        found[name] = ((section.__doc__ or "").strip(), list(_keys(name, section)))
    return found


def _keys(table: str, section: type[Section]) -> Iterator[Key]:
    schema = section.model_json_schema()
    families = section.families if issubclass(section, FamilySection) else {}
    for name, part in schema["properties"].items():
        choices = {"enum": families[name].names()} if name in families else {}
        yield _key(f"{table}.{name}", part | choices, schema)
    for chooser, family in families.items():
        owners: dict[Key, list[str]] = {}
        for name, member in family.importable().items():
            described = TypeAdapter(member).json_schema()
            for parameter, own in described.get("properties", {}).items():
                automatic = issubclass(section, FamilySection) and parameter in section.may_be_auto
                part = own | {"anyOf": [*own.get("anyOf", [own]), {"const": AUTO}]} if automatic else own
                owners.setdefault(_key(f"{table}.{parameter}", part, described), []).append(name)
        for key, names in owners.items():
            yield Key(key.name, key.default, key.range, key.meaning, f"{table}.{chooser} {' or '.join(names)}")


def _key(name: str, part: Mapping[str, Any], schema: Mapping[str, Any]) -> Key:
    required = name.rpartition(".")[2] in schema.get("required", ())
    absent = not required and part.get("default") is None and part.get("type") != "object"
    note = ", required" if required else ", absent by default" if absent else ""
    default = None if required or absent else _toml(part.get("default", {}))
    return Key(name, default, _range(part, schema.get("$defs", {})) + note, part.get("description", ""))


def _range(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a value may be, in words, by its JSON schema."""
    if "$ref" in part:
        return _range(definitions[part["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in part:
        choices = [_range(choice, definitions) for choice in part["anyOf"] if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(choices))
    if "enum" in part:
        return f"one of {', '.join(map(str, part['enum']))}"
    if "const" in part:
        return _toml(part["const"])
    kind = "path" if part.get("format") == "path" else KINDS[part["type"]]
    if kind == "list":
        length = f" of {part['minItems']}" if part.get("minItems") == part.get("maxItems") is not None else ""
        items = part.get("items") or (part.get("prefixItems") or [{}])[0]
        return f"list{length}: {_range(items, definitions)}" if items else kind
    bounds = [f"{sign} {part[bound]:g}" for bound, sign in BOUNDS.items() if bound in part]
    return f"{kind} {', '.join(bounds)}".strip()


def _toml(value: Any) -> str:
    """A default as TOML has it, which for such values is as JSON has it, but for what is not finite."""
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
