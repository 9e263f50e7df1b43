"""Kinds of training: runs that differ in nothing but the seed count as one, and what is measured of each over ε."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certood.analysis.reporting.runs import Run
from certood.runs.kinds import kind_of


@dataclass(frozen=True)
class Kind:
    """Certified runs of one kind of training, certified in one norm at the same radii on the same sets.

    `eps` (E + 1,) begins at 0; `gauc` and `aauc` (runs, E + 1) are means over the OOD sets, at ε = 0 the clean AUC.
    """

    name: str
    norm: str
    eps: NDArray[np.float64]
    gauc: NDArray[np.float64]
    aauc: NDArray[np.float64]


def kinds_of_training(runs: Sequence[Run]) -> list[Kind]:
    """The kinds of these runs, those without certified OOD images left out."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.certified and any(_outside(run)):
            groups.setdefault(_key(run), []).append(run)
    names = [_name(members) for members in groups.values()]
    return [
        _kind(name if names.count(name) == 1 else f"{name} ({members[0].name} …)", members)
        for name, members in zip(names, groups.values(), strict=True)
    ]


def _key(run: Run) -> str:
    """What runs of one kind share; a run without a recipe is a kind of its own."""
    assert run.certification is not None
    recipe = kind_of(run.recipe) or run.name
    sets = sorted(run.certification["sets"])
    return json.dumps([recipe, run.norm, run.certification["eps"], sets], sort_keys=True, default=str)


def _name(members: Sequence[Run]) -> str:
    if len(members) == 1:
        return members[0].name
    return f"{members[0].recipe.get('recipe', members[0].name)}, {len(members)} runs"


def _outside(run: Run) -> list[Mapping[str, Any]]:
    """The entries of OOD sets that have metrics."""
    assert run.certification is not None
    return [entry for entry in run.certification["sets"].values() if entry["kind"] == "ood" and "gauc" in entry]


def _kind(name: str, members: Sequence[Run]) -> Kind:
    assert members[0].certification is not None
    eps = np.array([0.0, *members[0].certification["eps"]])
    order = np.argsort(eps)

    def curve(key: str) -> NDArray[np.float64]:
        means = [np.mean([[entry["auc"], *entry[key]] for entry in _outside(run)], axis=0) for run in members]
        return np.array(means)[:, order]

    return Kind(name, str(members[0].norm), eps[order], curve("gauc"), curve("aauc"))
