"""Kinds of training and groups of OOD sets: what a report puts together, and what it keeps apart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certood.analysis.reporting.arms import shared_names
from certood.analysis.reporting.runs import Run
from certood.errors import CertoodError
from certood.runs.kinds import kind_of

NEAR, FAR, ALL = "near", "far", "all"
# A set whose name ends so is near the ID set where nobody says which ones are.
NEAR_ENDING = "-near"


@dataclass(frozen=True)
class Kind:
    """Runs that differ in nothing but the seed: trained alike, measured on the same images, certified alike."""

    name: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Any of them, for what all have in common."""
        return self.runs[0]

    @property
    def label(self) -> str:
        """What the kind is called in a legend."""
        return self.name if len(self.runs) == 1 else f"{self.name} ({len(self.runs)} seeds)"


@dataclass(frozen=True)
class Curve:
    """What is measured of a kind over ε: `eps` (E + 1,) begins at 0; `gauc` and `aauc` (runs, E + 1) are means over OOD sets.

    At ε = 0 both are the clean AUC.
    """

    kind: Kind
    eps: NDArray[np.float64]
    gauc: NDArray[np.float64]
    aauc: NDArray[np.float64]


def kinds_of_training(runs: Sequence[Run]) -> list[Kind]:
    """The kinds of these runs, in the order in which they are given; a run without a recipe is a kind of its own.

    So is one with a seed that its kind has already: it says nothing of other seeds.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = _key(run)
        if _seed(run) in map(_seed, groups.get(key, ())):
            key += run.path.as_posix()
        groups.setdefault(key, []).append(run)
    names = shared_names(list(groups.values()))
    return [Kind(name, tuple(members)) for name, members in zip(names, groups.values(), strict=True)]


def ood_groups(runs: Sequence[Run], near: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """The OOD sets of these runs by group: near and far ones where there are both, else all in one.

    Without `near` those are near that an evaluation calls so (`certood evaluate --near`), of one that says nothing those whose
    name ends in "-near", and none where evaluations disagree. Raises CertoodError for a set that no run has.
    """
    sets = list(dict.fromkeys(name for run in runs for name in (*run.benchmark.get("sets", ()), *certified_sets(run))))
    for name in near:
        if name not in sets:
            raise CertoodError(f"no run has the OOD set {name!r}: expected one of {', '.join(sets)}")
    if not near:
        usual = [name for name in sets if name.partition("?")[0].endswith(NEAR_ENDING)]
        said = {tuple(sorted(run.evaluation.get("near") or usual)) for run in runs if run.evaluation is not None}
        near = usual if not said else said.pop() if len(said) == 1 else ()
    close = tuple(name for name in sets if name in near)
    rest = tuple(name for name in sets if name not in close)
    return {NEAR: close, FAR: rest} if close and rest else {ALL: tuple(sets)}


def certified_sets(run: Run) -> list[str]:
    """The OOD sets of which a run has certificates."""
    entries = (run.certification or {}).get("sets", {})
    return [name for name, entry in entries.items() if entry["kind"] == "ood"]


def threat_curve(kind: Kind, sets: Sequence[str]) -> Curve | None:
    """What is measured of a kind over ε, on the certified ones of these sets; None where there are none."""
    found = [_entries(run, sets) for run in kind.runs]
    if not all(found):
        return None
    assert kind.first.certification is not None
    eps = np.array([0.0, *kind.first.certification["eps"]])
    order = np.argsort(eps)

    def curve(key: str) -> NDArray[np.float64]:
        means = [np.mean([[entry["auc"], *entry[key]] for entry in entries], axis=0) for entries in found]
        return np.array(means)[:, order]

    return Curve(kind, eps[order], curve("gauc"), curve("aauc"))


def _seed(run: Run) -> object:
    return run.recipe.get("run", {}).get("seed")


def _key(run: Run) -> str:
    """What runs of one kind share."""
    recipe = kind_of(run.recipe) or run.path.as_posix()
    certified = run.certification or {}
    asked = [certified.get(key) for key in ("norm", "eps", "method", "score", "image_sets")]
    effort = {key: value for key, value in certified.get("settings", {}).items() if key != "seed"}
    counted = [(name, entry["n"]) for name, entry in certified.get("sets", {}).items()]
    shared = [recipe, asked, effort, sorted(counted), run.benchmark_images, run.score]
    return json.dumps(shared, sort_keys=True, default=str)


def _entries(run: Run, sets: Sequence[str]) -> list[Mapping[str, Any]]:
    """The entries of these sets that have metrics of deterministic certificates."""
    if not run.certified or run.certification is None:
        return []
    entries = run.certification["sets"]
    return [entries[name] for name in sets if name in entries and "gauc" in entries[name]]
