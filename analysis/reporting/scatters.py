"""Scatter plots of a report: estimates against what is certified, a point for every image, and a point for every run."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from certood.analysis.records import Certificate
from certood.analysis.reporting.columns import NORM_NAMES
from certood.analysis.reporting.drawing import Picture, picture
from certood.analysis.reporting.links import RunPoint
from certood.analysis.reporting.panels import COLOURS, MARKERS
from certood.analysis.reporting.runs import Run


def scatters(run: Run) -> list[Picture]:
    """Gradient norm against certified Lipschitz constant, and gradient radius against certified radius: one point per image."""
    right = [record for record in run.certificates if record.correct]
    if not right or not run.certified:
        return []
    norm = NORM_NAMES[str(run.norm)]
    pictures = []
    for first, second, bottom, side in (
        ("gradient_norm", "lipschitz_certified", "gradient norm (estimate)", "certified Lipschitz constant"),
        ("radius_gradient", "radius_certified", f"gradient radius in {norm} (estimate)", f"certified radius in {norm}"),
    ):
        pairs = {kind: positive_pairs(right, kind, first, second) for kind in ("id", "ood")}
        shown = sum(len(part) for part in pairs.values())
        if not shown:
            continue
        draw = partial(_draw_scatter, pairs=pairs, bottom=bottom, side=side)
        left = len(right) - shown
        caption = (
            f"{left} of {len(right)} images with a value of 0, or without a finite one, are not drawn." if left else ""
        )
        pictures.append(picture(draw, f"{side} against {bottom}, {run.name}", caption))
    return pictures


def run_scatter(points: Sequence[RunPoint]) -> Picture | None:
    """Mean gradient norm of ID images against mean FPR95, a run a point; None for fewer than two."""
    if len(points) < 2:
        return None

    def draw(axes: Axes) -> None:
        for index, point in enumerate(points):
            axes.scatter(
                [point.gradient_norm],
                [100 * point.fpr95],
                s=60,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                label=point.name,
                zorder=3,
            )
        axes.margins(0.12)
        axes.set(xlabel="mean gradient norm of ID images (estimate)", ylabel="mean FPR95 (%)")

    return picture(draw, "Mean FPR95 against the mean gradient norm of ID images, a run a point")


def positive_pairs(records: Sequence[Certificate], kind: str, first: str, second: str) -> list[tuple[float, float]]:
    """Two columns of the records of a kind, where both are finite and above 0, as logarithmic axes need."""
    pairs = [(getattr(record, first), getattr(record, second)) for record in records if record.kind == kind]
    return [pair for pair in pairs if all(math.isfinite(value) and value > 0 for value in pair)]


def _draw_scatter(axes: Axes, pairs: dict[str, list[tuple[float, float]]], bottom: str, side: str) -> None:
    axes.set(xlabel=bottom, ylabel=side, xscale="log", yscale="log")
    for place, (kind, values) in enumerate(pairs.items()):
        if values:
            axes.scatter(
                [one for one, _ in values],
                [two for _, two in values],
                s=22,
                alpha=0.6,
                linewidths=0.9,
                # ID filled, OOD hollow: they differ without colour as well.
                facecolors=COLOURS[0] if place == 0 else "none",
                edgecolors=COLOURS[place],
                marker=MARKERS[place],
                label=f"{kind.upper()} ({len(values)})",
            )
    every = np.array([value for values in pairs.values() for pair in values for value in pair])
    ends = [every.min() / 1.2, every.max() * 1.2]
    axes.plot(ends, ends, color="0.55", linewidth=0.9, zorder=0, label="equal")
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        # Few decades need ticks between them, and many have no room for those.
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
