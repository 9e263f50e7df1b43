"""Conditions on certified numbers, for CI: "gauc>=0.6", "certified_fraction@svhn>=0.5"."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certood.analysis.summary import RUN_NUMBERS, entry_numbers
from certood.errors import CertoodError, RequirementNotMet

PATTERN = re.compile(r"\s*([a-z0-9_]+)(?:@([^<>=\s]+))?\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*")
COMPARISONS = {
    ">=": lambda found, limit: found >= limit,
    "<=": lambda found, limit: found <= limit,
    ">": lambda found, limit: found > limit,
    "<": lambda found, limit: found < limit,
}


@dataclass(frozen=True)
class Requirement:
    """A condition on a number of certification.json, of one set or of every set that has it, at the first ε."""

    text: str
    name: str
    set: str | None
    comparison: str
    limit: float


def parse_requirement(text: str) -> Requirement:
    """A condition NAME[@SET]>=NUMBER; raises CertoodError where it does not read."""
    match = PATTERN.fullmatch(text)
    if match is None:
        raise CertoodError(f"expected a requirement like gauc>=0.6 or certified_fraction@svhn>=0.5, got {text!r}")
    name, group, comparison, limit = match.groups()
    try:
        return Requirement(text.strip(), name, group, comparison, float(limit))
    except ValueError as error:
        raise CertoodError(f"expected a number at the end of the requirement {text!r}") from error


def check_names(requirements: Sequence[Requirement], kinds: Mapping[str, str], *, smoothed: bool = False) -> None:
    """Raise CertoodError for a condition on a number or a set that a run over these sets (name to id or ood) will not have.

    What the requirements name is checked before hours of work, what they ask for after them.
    """
    inside = "id" in kinds.values()
    numbers = {name: entry_numbers(kind, smoothed=smoothed, inside=inside) for name, kind in kinds.items()}
    for requirement in requirements:
        known = [name for name in numbers if requirement.set in (None, name)]
        if requirement.set is None and requirement.name in RUN_NUMBERS:
            continue
        if not any(requirement.name in numbers[name] for name in known):
            where = f" of set {requirement.set!r}" if requirement.set else ""
            names = sorted({number for one in numbers.values() for number in one})
            raise CertoodError(
                f"there is no {requirement.name!r}{where} to require; known: {', '.join([*RUN_NUMBERS, *names])}; "
                f"sets: {', '.join(kinds)}"
            )


def check_requirements(requirements: Sequence[Requirement], result: Mapping[str, Any]) -> None:
    """Raise RequirementNotMet where a condition does not hold, CertoodError where it names a number that is not there."""
    failed = []
    for requirement in requirements:
        for where, value in _values(requirement, result):
            if value is None or not COMPARISONS[requirement.comparison](value, requirement.limit):
                shown = "not known" if value is None else f"{value:.4g}"
                failed.append(f"{requirement.text}: {where} has {shown}")
    if failed:
        raise RequirementNotMet("required, but not so: " + "; ".join(failed))


def _values(requirement: Requirement, result: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    if requirement.set is None and requirement.name in RUN_NUMBERS:
        return [("the run", result.get(requirement.name))]
    found: list[tuple[str, float | None]] = []
    for name, entry in result["sets"].items():
        both = {f"both_sided_{key}": value for key, value in entry.get("both_sided", {}).items()}
        if requirement.set in (None, name) and requirement.name in (known := {**entry, **both}):
            value = known[requirement.name]
            found.append((name, value[0] if isinstance(value, list) else value))
    if not found:
        where = f" of set {requirement.set!r}" if requirement.set else ""
        raise CertoodError(f"there is no {requirement.name!r}{where} to require; sets: {', '.join(result['sets'])}")
    return found
