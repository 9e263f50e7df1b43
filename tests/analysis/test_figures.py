"""Figures of records that are hard to draw: one set, many, zeros, infinities, no correct decision."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from certood.analysis.records import AtRadius, Certificate
from certood.analysis.reporting.figures import (
    draw_figures,
    fraction_figure,
    gradient_figure,
    lipschitz_figure,
    margin_figure,
    roc_figure,
)
from certood.analysis.reporting.panels import logarithmic
from tests.quick import first_is_quick


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


@pytest.mark.parametrize("case", first_is_quick(reversed(CASES)))
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


def different() -> list[Certificate]:
    """Records in which no two numbers of an image are the same."""
    records = []
    for place, one in enumerate([*group("in", "id"), *group("out", "ood")]):
        names = sorted(one.values)
        values = {name: 1.0 + place + 0.01 * number for number, name in enumerate(names)}
        at = one.at[0]
        # Of the attacked and the lower scores some lie among those of ID images.
        per_eps = {name: 0.5 + place + 0.01 * number for number, name in enumerate(sorted(at.values))}
        records.append(replace(one, values=values, at=(replace(at, values=per_eps),)))
    return records


def test_figures_show_the_columns_that_they_name() -> None:
    records = different()
    groups = {name: [one for one in records if one.set == name] for name in ("in", "out")}
    result = {"norm": "inf", "method": "crown", "eps": [0.01], "global_lipschitz": 9.0}
    (axes,) = gradient_figure(groups, result).axes
    boxes = [line.get_xdata() for line in axes.lines if len(set(np.asarray(line.get_xdata()).tolist())) == 1]
    shown = {float(np.asarray(data)[0]) for data in boxes if len(np.asarray(data)) == 2}
    for part in groups.values():
        assert np.median([one.gradient_norm for one in part]) in shown
    for axes, part in zip(lipschitz_figure(groups, result).axes, groups.values(), strict=True):
        found = {str(line.get_label()): np.asarray(line.get_ydata())[0] for line in axes.lines}
        assert found["global bound"] == 9.0
        assert found["certified on the ball"] == np.median([one.at[0].lipschitz for one in part])
        assert found["largest sampled gradient (estimate)"] == np.median([one.at[0].sampled for one in part])
    for axes, part in zip(margin_figure(groups, result).axes, groups.values(), strict=True):
        for drawn, name in zip(axes.collections, ("radius_gradient", "radius_certified"), strict=True):
            expected = [[one.margin, getattr(one, name)] for one in part]
            np.testing.assert_allclose(np.asarray(drawn.get_offsets()), expected)
    (axes,) = roc_figure(groups, result).axes
    inside = np.array([one.score for one in groups["in"]])
    worst = {
        "clean": [one.score for one in groups["out"]],
        "attacked": [min(one.score, one.at[0].attacked) for one in groups["out"]],
        "guaranteed": [min(one.score, one.at[0].attacked, one.at[0].lower) for one in groups["out"]],
    }
    drawn = {str(line.get_label()): line for line in axes.lines}
    for name, scores in worst.items():
        expected = [
            [np.mean(inside >= cut), np.mean(np.array(scores) > cut)]
            for cut in (-math.inf, *np.unique(inside), math.inf)
        ]
        np.testing.assert_allclose(np.asarray(drawn[name].get_xydata()), expected)
    for axes, part in zip(fraction_figure(groups, result).axes, groups.values(), strict=True):
        line = next(line for line in axes.lines if str(line.get_label()).startswith("certified"))
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        radii = [one.radius_certified for one in part]
        np.testing.assert_allclose(y, [np.mean([radius >= one for radius in radii]) for one in x])


def test_where_no_bound_is_known_nothing_is_guaranteed() -> None:
    inside, outside = group("in", "id"), group("out", "ood")
    unknown = [replace(one, at=(AtRadius(0.01, "unknown", {"attacked": math.nan}),)) for one in outside]
    result = {"norm": "inf", "method": "crown", "eps": [0.01]}
    (axes,) = roc_figure({"in": inside, "out": unknown}, result).axes
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}
    assert (drawn["guaranteed"][1:] == 0).all()
    np.testing.assert_allclose(drawn["attacked"], drawn["clean"])
