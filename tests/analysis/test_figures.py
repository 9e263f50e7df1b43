"""Figures of records that are hard to draw: one set, many, zeros, infinities, no correct decision."""

import math
import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from certood.analysis.records import AtRadius, Certificate
from certood.analysis.reporting.figures import draw_figures
from certood.analysis.reporting.panels import logarithmic


def record(name: str, kind: str, index: int, *, right: bool = True, size: float = 1.0) -> Certificate:
    accepted = (kind == "id") == right
    radius = size * 0.01 * (index + 1) if right else 0.0
    constant = math.inf if size == 0 else 3.0
    per_eps = {"lower": -2.0, "upper": math.inf if size == 0 else 2.0, "attacked": 0.5}
    at = AtRadius(0.01, "unknown", per_eps | {"lipschitz": constant, "sampled": 2.0 * size})
    values = dict.fromkeys(("gradient_norm", "lipschitz_sampled", "lipschitz_clever"), size)
    values |= dict.fromkeys(("radius_gradient", "radius_lipschitz", "radius_step", "radius_certified"), radius)
    values |= {"lipschitz_certified": 3 * size, "radius_attack": math.inf if size == 0 else 2 * radius}
    return Certificate(
        set=name, kind=kind, index=index, score=float(index), threshold=1.0, margin=size, accepted=accepted,
        seconds=0.1, values=values, at=(at,),
    )  # fmt: skip


def group(name: str, kind: str, **how: float) -> list[Certificate]:
    return [record(name, kind, index, **how) for index in range(4)]  # type: ignore[arg-type]


CASES = {
    "one set": group("in", "id"),
    "nine sets": group("in", "id")
    + [one for place in range(8) for one in group(f"npz:a/long/path/{place}.npz", "ood")],
    "all wrong": group("in", "id", right=False) + group("out", "ood", right=False),
    "zeros and infinities": group("in", "id", size=0.0) + group("out", "ood", size=0.0),
    "one image": group("out", "ood")[:1],
}


@pytest.mark.parametrize("case", CASES)
def test_everything_is_drawn_without_a_warning(case: str, tmp_path: Path) -> None:
    result = {"norm": "inf", "method": "crown", "eps": [0.01], "global_lipschitz": None if "zeros" in case else 9.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw_figures(CASES[case], result, tmp_path / "figures")
    assert ("roc.png" in {path.name for path in drawn}) == ({one.kind for one in CASES[case]} == {"id", "ood"})
    assert all(path.stat().st_size > 5000 for path in drawn)


@pytest.mark.parametrize("values", [[1e-12, 1e6], [0.031, 0.033], [0.0, 5.0, math.inf], [0.0], [1.0, 1.0]])
def test_a_logarithmic_axis_has_a_few_labels_within_its_range(values: list[float]) -> None:
    axes = Figure().add_subplot()
    low = logarithmic(axes, "x", values)
    left, right = axes.get_xlim()
    ticks = axes.get_xticks()
    assert low == left > 0
    assert 2 <= len(ticks) <= 5
    assert all(left <= tick <= right for tick in ticks)
    assert all(left <= value <= right for value in values if 0 < value < math.inf)
