"""Nested tables of settings as values by dotted key, and in words what differs between two."""

from collections.abc import Mapping, Sequence
from typing import Any

# Of keys that differ, so many are described with their values, and values no longer than this are shown.
DESCRIBED_KEYS = 3
SHOWN = 40


def flat_keys(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= flat_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which values by dotted key differ, in alphabetical order; a key that one side lacks is one of them."""
    missing = object()
    return sorted(key for key in {*one, *other} if one.get(key, missing) != other.get(key, missing))


def described(there: Mapping[str, Any], here: Mapping[str, Any], keys: Sequence[str]) -> str:
    """In words, how settings by dotted key differ from others in the keys given: the first with both values, then names."""
    first = [_difference(there, here, key) for key in keys[:DESCRIBED_KEYS]]
    more = keys[DESCRIBED_KEYS:]
    return "; ".join([*first, f"and {', '.join(more)}"] if more else first)


def _difference(there: Mapping[str, Any], here: Mapping[str, Any], key: str) -> str:
    one, other = (repr(side[key]) if key in side else "none" for side in (there, here))
    # A table, which is no value by dotted key, has none on either side.
    shown = (key in there or key in here) and max(len(one), len(other)) <= SHOWN
    return f"{key}: {one} there, {other} here" if shown else f"{key} differs"
