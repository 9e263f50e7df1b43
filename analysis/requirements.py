"""Conditions on certified numbers, for CI: "gauc>=0.6", "certified_fraction@svhn>=0.5"."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    found: list[tuple[str, float | None]] = []
    if requirement.set is None and isinstance(result.get(requirement.name), (int, float)):
        found.append(("the run", float(result[requirement.name])))
    for name, entry in result["sets"].items():
        if requirement.set in (None, name) and requirement.name in entry:
            value = entry[requirement.name]
            found.append((name, value[0] if isinstance(value, list) else value))
    if not found:
        known = sorted({key for entry in result["sets"].values() for key in entry if key not in ("kind", "both_sided")})
        where = f" of set {requirement.set!r}" if requirement.set else ""
        raise CertoodError(
            f"there is no {requirement.name!r}{where} to require; known: violations, {', '.join(known)}; "
            f"sets: {', '.join(result['sets'])}"
        )
    return found
