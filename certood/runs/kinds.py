"""Which runs are of one kind: those whose recipes differ in the seed alone, and in where they ran."""

from collections.abc import Mapping
from typing import Any

from certood.runs.tables import flat_keys

SEED = "run.seed"
# The SHA-256 of the detector of which a run of `certood modify` is a modification.
MODIFIED = "modification.of"
# Keys that say where a recipe ran and who was told, which changes nothing of what was trained but its rounding.
WHERE = ("run.device", "run.devices", "run.nodes", "run.trackers", "run.tensorboard")


def automatic(tables: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """How numbers of a recipe.toml that were asked for as "auto" came about, by key; see certood.train.automatic."""
    found: dict[str, Mapping[str, Any]] = tables.get("record", {}).get("auto", {})
    return found


def tracker_runs(tables: Mapping[str, Any]) -> dict[str, str]:
    """By what names the trackers of a run know it, by the names of the trackers."""
    found: dict[str, str] = tables.get("record", {}).get("trackers", {})
    return found


def recorded_hashes(tables: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of a run's image sets and of the weights it started from, by name; empty where none is known."""
    found: dict[str, str] = tables.get("record", {}).get("sha256", {})
    return found


def trained_on(recorded: Mapping[str, str]) -> dict[str, str]:
    """Of the SHA-256 that a recipe.toml records, by name, those of what the training read: images, and weights it began with.

    Test images are left out: what was measured on them is in evaluation.json, with their hashes.
    """
    fixed = ("id-train", "id-validation", "training.init", "guarded-detector")
    pools = ("auxiliary/", "auxiliary-validation/")
    return {name: found for name, found in recorded.items() if name in fixed or name.startswith(pools)}


def changed_inputs(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which the trainings of two recipe.toml read different things, of what both record."""
    first, second = (trained_on(recorded_hashes(tables)) for tables in (one, other))
    return sorted(name for name in first.keys() & second.keys() if first[name] != second[name])


def kind_of(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of one kind have in common: the keys of a recipe.toml but `run.seed`, where it ran, and the record of the run.

    A number that was asked for as "auto" is that, whatever came out. Which detector was modified is no part of the kind.
    """
    asked = flat_keys({name: value for name, value in tables.items() if name != "record"})
    asked |= dict.fromkeys(automatic(tables), "auto")
    return {key: value for key, value in asked.items() if key not in (SEED, MODIFIED, *WHERE)}
