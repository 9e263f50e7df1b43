"""Axes of figures: a panel per set, logarithmic axes whose labels do not overlap, marks that tell ID from OOD without colour."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import ArrayLike

from certood.analysis.records import Certificate
from certood.analysis.reporting.columns import NORM_NAMES

# Okabe and Ito's palette, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "^", "s", "v", "D", "P", "X")
# In every figure ID is blue, a round mark and a plain area, OOD vermilion, a triangle and a hatched area.
KIND_COLOURS = {"id": COLOURS[0], "ood": COLOURS[1]}
KIND_MARKERS = {"id": "o", "ood": "^"}
KIND_HATCHES = {"id": "", "ood": "///"}

Groups = Mapping[str, Sequence[Certificate]]


def panels(
    groups: Groups, across: str, upwards: str, *, share: bool = True, height: float = 2.5
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for every set, titled with its name and kind, at most three in a row.

    `across` and `upwards` say what the axes show, with units. With `share` all panels have the same axes.
    """
    count = len(groups)
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(4.8, 3.1 * columns), height * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    found: list[Axes] = []
    for place, (name, group) in enumerate(groups.items(), start=1):
        first = found[0] if found and share else None
        axes = figure.add_subplot(rows, columns, place, sharex=first, sharey=first)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(titled(name, group), fontsize=9)
        axes.tick_params(labelsize=8)
        if place > count - columns:  # nothing below it
            axes.set_xlabel(across, fontsize=8)
        found.append(axes)
    figure.supylabel(upwards, fontsize=9)
    return figure, found


def titled(name: str, group: Sequence[Certificate]) -> str:
    """A set's name, shortened, with its kind."""
    short = name if len(name) <= 28 else f"…{name[-27:]}"
    return f"{short} ({group[0].kind.upper()})"


def legend(figure: Figure, all_axes: Iterable[Axes]) -> None:
    """One legend for all panels, outside of the data."""
    entries: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(4, len(entries)),
        fontsize=8,
        frameon=False,
    )


def logarithmic(
    axes: Axes, axis: str, values: ArrayLike, *, ticks: Sequence[float] | None = None, most: int = 5
) -> float:
    """Make an axis logarithmic around the positive finite values; returns its lower end, where zeros may be drawn.

    At most `most` labels: at `ticks`, or at round numbers, whether the values span ten decades or lie close together.
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.1, 1.0)
    pad = float(max(high / low, 2.0) ** 0.08)
    low, high = low / pad, high * pad
    places = list(ticks) if ticks is not None else _round_numbers(low, high)
    places = places[:: math.ceil(len(places) / most)]
    change, side = (axes.set_xscale, axes.xaxis) if axis == "x" else (axes.set_yscale, axes.yaxis)
    limit = axes.set_xlim if axis == "x" else axes.set_ylim
    limit(low, high)  # before, because a scale must have a positive range, and after, because it chooses its own
    change("log")
    limit(low, high)
    side.set_major_locator(FixedLocator(places))
    side.set_major_formatter(FixedFormatter([f"{place:.3g}" if place < 1000 else f"{place:g}" for place in places]))
    side.set_minor_locator(NullLocator())
    return low


def _round_numbers(low: float, high: float) -> list[float]:
    """At least three numbers of few digits between two."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(found) >= 3:
            return found
    return [float(number) for number in np.linspace(low, high, 5)[1:-1]]


def radius_label(result: Mapping[str, Any]) -> str:
    """The unit of radii."""
    return f"radius in {NORM_NAMES[result['norm']]} (pixels, range 0 to 1)"
