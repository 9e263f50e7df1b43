"""Figures of a certified run, PNG and SVG: ID and OOD differ by line style and marker as well as by colour."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from certood.analysis.records import Certificate
from certood.errors import RunDirectoryError

# Okabe and Ito's palette, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "^", "s", "v", "D", "P", "X")
NORM_NAMES = {"inf": "l∞", "2": "l2", "1": "l1"}

Groups = Mapping[str, Sequence[Certificate]]


def draw_figures(records: Sequence[Certificate], result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the records of a run show into a folder; the PNG files drawn. Raises RunDirectoryError where it cannot."""
    groups: dict[str, list[Certificate]] = {}
    for record in sorted(records, key=lambda record: record.kind):
        groups.setdefault(record.set, []).append(record)
    figures = {"scores": score_figure(groups)}
    if result["method"] == "smoothing":
        figures["smoothed_fraction"] = smoothed_figure(groups, result)
    else:
        figures |= {
            "certified_fraction": fraction_figure(groups, result),
            "margin_radius": margin_figure(groups, result),
            "gradient_norms": gradient_figure(groups, result),
            "lipschitz": lipschitz_figure(groups, result),
        }
        if {record.kind for record in records} == {"id", "ood"}:
            figures["roc"] = roc_figure(groups, result)
    drawn = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for ending in ("png", "svg"):
                figure.savefig(
                    folder / f"{name}.{ending}", dpi=150, metadata={"Date": None} if ending == "svg" else None
                )
            drawn.append(folder / f"{name}.png")
    except OSError as error:
        raise RunDirectoryError(f"cannot write figures to {folder}: {error.strerror or error}") from error
    return drawn


def fraction_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Share of images certified, and not yet changed by an attack, over the radius; what is unknown lies between."""
    figure, axes = _figure()
    finite = [r.radius_attack for group in groups.values() for r in group if math.isfinite(r.radius_attack)]
    end = 1.1 * float(np.quantile(finite, 0.95)) if finite else max(result["eps"])
    grid = np.linspace(0, max(end, 1e-6), 300)
    for place, (name, group) in enumerate(groups.items()):
        # A radius of 0 is a wrong decision, which no ball makes right.
        certified = _share_above(np.array([record.radius_certified for record in group]), grid)
        standing = _share_above(np.array([record.radius_attack for record in group]), grid)
        style = _style(place)
        axes.plot(grid, certified, label=f"{name} ({group[0].kind.upper()})", **style)
        axes.plot(grid, standing, alpha=0.5, linewidth=1, **_line(place))
        axes.fill_between(grid, certified, standing, color=style["color"], alpha=0.12, linewidth=0)
    for radius in result["eps"]:
        axes.axvline(radius, color="0.6", linewidth=0.8)
    axes.set(xlabel=_radius_label(result), ylabel="share of images", ylim=(0, 1.02), xlim=(0, grid[-1]))
    axes.set_title("Certified (thick) and not yet refuted by attack (thin)", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def smoothed_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Share of images whose smoothed decision is certified with the stated confidence, over the radius."""
    figure, axes = _figure()
    radii = [record.radius_smoothing for group in groups.values() for record in group]
    grid = np.linspace(0, 1.05 * max([*radii, 1e-6]), 300)
    for place, (name, group) in enumerate(groups.items()):
        share = _share_above(np.array([record.radius_smoothing for record in group]), grid)
        axes.plot(grid, share, label=f"{name} ({group[0].kind.upper()})", **_style(place))
    confidence = result["settings"]["smoothing"]["confidence"]
    axes.set(xlabel=_radius_label(result), ylabel="share of images", ylim=(0, 1.02))
    axes.set_title(f"Smoothed detector, each image with confidence {confidence:g}", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def margin_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Margin against certified radius, and against the gradient radius, an estimate."""
    figure, axes = _figure()
    for place, (name, group) in enumerate(groups.items()):
        right = [record for record in group if record.correct and record.margin > 0]
        margins = [record.margin for record in right]
        style = _style(place)
        axes.scatter(
            margins,
            [record.radius_certified for record in right],
            s=14,
            marker=MARKERS[place % len(MARKERS)],
            color=style["color"],
            alpha=0.7,
            linewidths=0,
            label=f"{name} ({group[0].kind.upper()})",
        )
        axes.scatter(
            margins,
            [record.radius_gradient for record in right],
            s=22,
            marker="+",
            linewidths=0.8,
            color=style["color"],
            alpha=0.6,
        )
    axes.set(xlabel="margin |γ − S(x)|", ylabel=_radius_label(result), xscale="log", yscale="log")
    axes.set_title("Certified radius; + estimate: margin over gradient norm", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def gradient_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Distribution of gradient norms at the images, by set."""
    figure, axes = _figure()
    values = [max(record.gradient_norm, 1e-12) for group in groups.values() for record in group]
    edges = np.geomspace(max(min(values), 1e-6 * max(values)), max(values) * 1.01, 41)
    for place, (name, group) in enumerate(groups.items()):
        norms = np.clip([record.gradient_norm for record in group], edges[0], None)
        share = np.histogram(norms, edges)[0] / len(group)
        axes.stairs(share, edges, label=f"{name} ({group[0].kind.upper()})", linewidth=1.6, **_line(place))
    dual = {"inf": "1", "2": "2", "1": "∞"}[result["norm"]]
    axes.set(xlabel=f"gradient norm ‖∇S(x)‖ in l{dual} (score per pixel)", ylabel="share of images", xscale="log")
    axes.legend(fontsize=8)
    return figure


def lipschitz_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Local Lipschitz constants over ε, medians: sampled (estimate) ≤ certified ≤ global."""
    figure, axes = _figure()
    order = np.argsort(result["eps"])
    eps = np.array(result["eps"])[order]
    for place, (name, group) in enumerate(groups.items()):
        certified = np.median([[record.at[index].lipschitz for index in order] for record in group], axis=0)
        sampled = np.median([[record.at[index].sampled for index in order] for record in group], axis=0)
        style, marker = _style(place), MARKERS[place % len(MARKERS)]
        axes.plot(eps, certified, marker=marker, markersize=4, label=f"{name} ({group[0].kind.upper()})", **style)
        axes.plot(
            eps, sampled, marker=marker, markersize=4, markerfacecolor="none", alpha=0.5, linewidth=1, **_line(place)
        )
    constant = result.get("global_lipschitz")
    if constant is not None and math.isfinite(constant):
        axes.axhline(constant, color="black", linewidth=1.2, label="global bound")
    axes.set(xlabel=_radius_label(result), ylabel="Lipschitz constant of S (score per pixel)", yscale="log")
    if len(eps) > 1:
        axes.set_xscale("log")
    axes.set_title("Certified (filled); largest sampled gradient, an estimate (hollow)", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def roc_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """ROC curves of every OOD set at the first ε: clean, attacked, guaranteed; the threat is on the OOD image."""
    inside = np.array([record.score for group in groups.values() for record in group if record.kind == "id"])
    outside = {name: group for name, group in groups.items() if group[0].kind == "ood"}
    columns = min(3, len(outside))
    rows = math.ceil(len(outside) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, group) in enumerate(outside.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        kinds = {
            "clean": ([record.score for record in group], COLOURS[0], "-"),
            "attacked": ([min(record.at[0].attacked, record.score) for record in group], COLOURS[1], "--"),
            "guaranteed": ([min(record.at[0].lower, record.at[0].attacked) for record in group], COLOURS[2], "-."),
        }
        for label, (scores, colour, style) in kinds.items():
            accepted, found = _roc(inside, np.array(scores))
            axes.plot(accepted, found, color=colour, linestyle=style, label=label)
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        axes.set(title=name, xlabel="ID rejected", ylabel="OOD rejected", xlim=(0, 1), ylim=(0, 1.01))
        axes.title.set_fontsize(9)
        axes.legend(fontsize=7, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"ε = {result['eps'][0]:g} in {NORM_NAMES[result['norm']]}, pixels", fontsize=10)
    return figure


def score_figure(groups: Groups) -> Figure:
    """Distribution of scores by set, and the threshold γ."""
    figure, axes = _figure()
    values = [record.score for group in groups.values() for record in group]
    edges = np.linspace(min(values), max(values) + 1e-9, 51)
    for place, (name, group) in enumerate(groups.items()):
        share = np.histogram([record.score for record in group], edges)[0] / len(group)
        label = f"{name} ({group[0].kind.upper()})"
        axes.stairs(share, edges, label=label, linewidth=1.6, fill=False, **_line(place))
    threshold = next(iter(groups.values()))[0].threshold
    axes.axvline(threshold, color="black", linewidth=1.2, label=f"γ = {threshold:.3g}")
    axes.set(xlabel="score S(x), higher is more outlying", ylabel="share of images")
    axes.legend(fontsize=8)
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": STYLES[place % len(STYLES)]}


def _style(place: int) -> dict[str, Any]:
    return _line(place) | {"linewidth": 2}


def _share_above(radii: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    kept: NDArray[np.float64] = ((radii[None] >= grid[:, None]) & (radii[None] > 0)).mean(1)
    return kept


def _roc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of ID and of OOD images above every threshold; ties count against the detector."""
    thresholds = np.concatenate([[-np.inf], np.unique(inside), [np.inf]])
    rejected_in = 1 - np.searchsorted(np.sort(inside), thresholds, "left") / len(inside)
    rejected_out = 1 - np.searchsorted(np.sort(outside), thresholds, "right") / len(outside)
    return rejected_in, rejected_out


def _radius_label(result: Mapping[str, Any]) -> str:
    return f"radius in {NORM_NAMES[result['norm']]} (pixels, image range 0 to 1)"
