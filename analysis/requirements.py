"""Conditions on certified numbers, for CI: "gauc>=0.6", "certified_fraction@svhn>=0.5".

Where a number has a 95 % interval, the end of it that is less favourable decides; elsewhere the number itself.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from certood.analysis.intervals import Interval, area_interval, median_interval, share_interval
from certood.analysis.records import Certificate
from certood.analysis.summary import AREAS, FALSE_POSITIVES, FRACTIONS, RUN_NUMBERS, entry_numbers, median_samples
from certood.errors import CertoodError, RequirementNotMet
from certood.text_tables import TextTable

PATTERN = re.compile(r"\s*([a-z0-9_]+)(?:@([^<>=\s]+))?\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*")
COMPARISONS = {
    ">=": lambda found, limit: found >= limit,
    "<=": lambda found, limit: found <= limit,
    ">": lambda found, limit: found > limit,
    "<": lambda found, limit: found < limit,
}
# Of fewer images a set nothing is certified that a release should rest on.
LEAST_IMAGES = 100
SHARES = ("correct", *FRACTIONS[False], *FRACTIONS[True], *FALSE_POSITIVES)


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
    """Raise CertoodError for a condition on a number or a set that a run over these sets (name to id or ood) will not have, and
    for a limit that is no share where one is asked for.

    What the requirements name is checked before hours of work, what they ask for after them.
    """
    numbers = _numbers(kinds, smoothed=smoothed)
    for requirement in requirements:
        if requirement.name in (*SHARES, *AREAS) and not 0 <= requirement.limit <= 1:
            raise CertoodError(
                f"{requirement.text}: {requirement.name} is a share, from 0 to 1 and not in per cent; found {requirement.limit:g}"
            )
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


def require_enough(
    requirements: Sequence[Requirement], images: Mapping[str, tuple[str, int]], *, smoothed: bool = False
) -> None:
    """Raise RequirementNotMet where a condition is about fewer than 100 images of a set; `images` are kind and number by set.

    Areas under the ROC curve are about the ID images too, and numbers of the run about the images of all sets.
    """
    kinds = {name: kind for name, (kind, _) in images.items()}
    asked: set[str] = set()
    for requirement in requirements:
        asked |= {name for name in images if requirement.name in _numbers(kinds, smoothed=smoothed)[name]} & (
            {requirement.set} if requirement.set else set(images)
        )
        if requirement.name in AREAS:
            asked |= {name for name, kind in kinds.items() if kind == "id"}
        if requirement.name in RUN_NUMBERS:
            asked |= set(images)
    few = [f"{name} has {count}" for name, (_, count) in images.items() if name in asked and count < LEAST_IMAGES]
    if few:
        raise RequirementNotMet(
            f"requirements need at least {LEAST_IMAGES} images a set, but {', '.join(few)}; certify more, or add --allow-few"
        )


@dataclass(frozen=True)
class Outcome:
    """What was found for a requirement, in one set or in the run (`where`).

    `value` is None where the number is not known, `n` the number of images that it is computed from, the fewer of ID and OOD ones
    for metrics of both; `interval` is the 95 % interval, None where there is none for such a number.
    """

    requirement: Requirement
    where: str
    value: float | None
    n: int
    interval: Interval | None

    @property
    def decisive(self) -> float | None:
        """The end of the interval that is less favourable, or the value where there is no interval."""
        if self.value is None or self.interval is None:
            return self.value
        return self.interval[0] if self.requirement.comparison.startswith(">") else self.interval[1]

    @property
    def holds(self) -> bool:
        """Whether the condition holds; it does not where the number is not known."""
        found = self.decisive
        return found is not None and COMPARISONS[self.requirement.comparison](found, self.requirement.limit)


def judge(
    requirements: Sequence[Requirement], result: Mapping[str, Any], records: Sequence[Certificate]
) -> list[Outcome]:
    """An outcome for each requirement and set that it is about, from what certification.json and certificates.csv hold.

    Raises CertoodError for a condition on a number that is not there.
    """
    return [outcome for requirement in requirements for outcome in _outcomes(requirement, result, records)]


def outcome_table(outcomes: Sequence[Outcome]) -> TextTable:
    """A row for every requirement and set: the number, from how many images, its 95 % interval, and whether it holds."""
    table = TextTable(
        ("set", "value", "n", "95 % interval", "holds"),
        title="requirements; the end of the 95 % interval that is less favourable decides",
    )
    for text, of_one in groupby(outcomes, lambda found: found.requirement.text):
        table.line(text)
        for found in of_one:
            interval = "–" if found.interval is None else f"{found.interval[0]:.4g} to {found.interval[1]:.4g}"
            table.row(found.where, _shown(found.value), str(found.n), interval, "yes" if found.holds else "NO")
    return table


def check_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Raise RequirementNotMet where a condition does not hold, naming what decided."""
    failed = []
    for found in outcomes:
        if not found.holds:
            decided = "" if found.interval is None or found.value is None else f" and, decisive, {found.decisive:.4g}"
            failed.append(f"{found.requirement.text}: {found.where} has {_shown(found.value)}{decided}")
    if failed:
        raise RequirementNotMet("required, but not so: " + "; ".join(failed))


def check_requirements(
    requirements: Sequence[Requirement],
    result: Mapping[str, Any],
    records: Sequence[Certificate],
    *,
    allow_few: bool = False,
) -> list[Outcome]:
    """The outcomes of conditions that all hold, of enough images; raises RequirementNotMet, and CertoodError as `judge` does."""
    outcomes = judge(requirements, result, records)
    if not allow_few:
        images = {name: (entry["kind"], entry["n"]) for name, entry in result["sets"].items()}
        require_enough(requirements, images, smoothed=_smoothed(result))
    check_outcomes(outcomes)
    return outcomes


def _numbers(kinds: Mapping[str, str], *, smoothed: bool) -> dict[str, tuple[str, ...]]:
    """The numbers that every set of a run gets."""
    inside = "id" in kinds.values()
    return {name: entry_numbers(kind, smoothed=smoothed, inside=inside) for name, kind in kinds.items()}


def _smoothed(result: Mapping[str, Any]) -> bool:
    return any(name in entry for entry in result["sets"].values() for name in FRACTIONS[True])


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"


def _outcomes(requirement: Requirement, result: Mapping[str, Any], records: Sequence[Certificate]) -> list[Outcome]:
    sets = result["sets"]
    if requirement.set is None and requirement.name in RUN_NUMBERS:
        images = sum(entry["n"] for entry in sets.values())
        return [Outcome(requirement, "the run", _known(result.get(requirement.name)), images, None)]
    found = []
    for name, entry in sets.items():
        numbers = entry | {f"both_sided_{key}": value for key, value in entry.get("both_sided", {}).items()}
        if requirement.set in (None, name) and requirement.name in numbers:
            group = [record for record in records if record.set == name]
            inside = sum(one["n"] for one in sets.values() if one["kind"] == "id")
            samples = median_samples(group, smoothed=_smoothed(result)) if group else {}
            found.append(_outcome(requirement, name, numbers, samples, inside))
    if not found:
        where = f" of set {requirement.set!r}" if requirement.set else ""
        raise CertoodError(f"there is no {requirement.name!r}{where} to require; sets: {', '.join(sets)}")
    return found


def _outcome(
    requirement: Requirement,
    where: str,
    numbers: Mapping[str, Any],
    samples: Mapping[str, list[list[float]]],
    n_id: int,
) -> Outcome:
    """The outcome in one set, at the first ε; `samples` are those of its medians, `n_id` the number of ID images of the run."""
    name, n = requirement.name, numbers["n"]
    value = _known(numbers[name])
    interval: Interval | None = None
    if name in samples:
        sample = samples[name][0]
        n, interval = len(sample), median_interval(sample)
    elif name in SHARES and value is not None:
        interval = share_interval(value, n)
    elif name in AREAS and value is not None:
        interval = area_interval(value, n_id, n)
        n = min(n, n_id)
    return Outcome(requirement, where, value, n, interval)


def _known(value: Any) -> float | None:
    """A number, at the first ε where it has one for each; None where it is not known."""
    first = value[0] if isinstance(value, list) else value
    return None if first is None or math.isnan(first) else float(first)
