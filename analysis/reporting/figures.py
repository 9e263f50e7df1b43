"""Figures of a certified run, PNG and SVG: one panel per set, ID and OOD told apart by mark and hatching as well as by colour."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from certood.analysis.certified_metrics import worst_scores
from certood.analysis.records import Certificate
from certood.analysis.reporting.columns import NORM_NAMES
from certood.analysis.reporting.panels import (
    COLOURS,
    KIND_COLOURS,
    KIND_HATCHES,
    KIND_MARKERS,
    Groups,
    legend,
    logarithmic,
    panels,
    radius_label,
    titled,
)
from certood.errors import RunDirectoryError
from certood.files import replacing


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
                with replacing(folder / f"{name}.{ending}") as temporary:
                    _save(figure, temporary, ending)
            drawn.append(folder / f"{name}.png")
    except OSError as error:
        raise RunDirectoryError(f"cannot write figures to {folder}: {error.strerror or error}") from error
    return drawn


def _save(figure: Figure, path: Path, ending: str) -> None:
    """Write a figure; the same one always gives the same bytes, without a date and with names that follow from its content."""
    with rc_context({"svg.hashsalt": "certood"}):
        figure.savefig(path, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)


def fraction_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Share of images certified, and not yet changed by an attack, over the radius; what is unknown lies between."""
    figure, all_axes = panels(groups, radius_label(result), "share of images", share=False)
    for axes, group in zip(all_axes, groups.values(), strict=True):
        attacked = np.array([record.radius_attack for record in group])
        finite = attacked[np.isfinite(attacked)]
        end = 1.1 * max(float(np.quantile(finite, 0.95)) if len(finite) else 0.0, *result["eps"])
        grid = np.linspace(0, end, 400)
        # A radius of 0 is a wrong decision, which no ball makes right.
        certified = share_above(np.array([record.radius_certified for record in group]), grid)
        standing = share_above(attacked, grid)
        colour = KIND_COLOURS[group[0].kind]
        axes.fill_between(grid, certified, standing, color="0.85", linewidth=0, label="unknown")
        axes.plot(grid, certified, color=colour, linewidth=2, label="certified")
        axes.plot(grid, standing, color="black", linewidth=1, linestyle="--", label="not refuted by an attack")
        for place, radius in enumerate(result["eps"]):
            axes.axvline(radius, color="0.45", linewidth=0.8, linestyle=":", label=None if place else "ε")
        axes.set(ylim=(0, 1.03), xlim=(0, end))
        _thin_labels(axes)
    figure.suptitle("Decisions that are correct and stay so within the radius", fontsize=10)
    legend(figure, all_axes)
    return figure


def smoothed_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Share of images whose smoothed decision is certified with the stated confidence, over the radius."""
    figure, all_axes = panels(groups, radius_label(result), "share of images")
    largest = max([record.radius_smoothing for group in groups.values() for record in group] + [max(result["eps"])])
    grid = np.linspace(0, 1.05 * largest, 400)
    for axes, group in zip(all_axes, groups.values(), strict=True):
        share = share_above(np.array([record.radius_smoothing for record in group]), grid)
        axes.plot(grid, share, color=KIND_COLOURS[group[0].kind], linewidth=2)
        for radius in result["eps"]:
            axes.axvline(radius, color="0.45", linewidth=0.8, linestyle=":")
        axes.set(ylim=(0, 1.03), xlim=(0, grid[-1]))
        _thin_labels(axes)
    smoothing = result["settings"]["smoothing"]
    figure.suptitle(
        f"Smoothed detector (σ = {smoothing['sigma']:g}): probabilistic, each image with confidence {smoothing['confidence']:g}",
        fontsize=10,
    )
    return figure


def margin_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Margin against certified radius, and against the gradient radius, an estimate; zeros lie on the lower edge."""
    figure, all_axes = panels(groups, "margin |γ − S(x)| (units of the score)", radius_label(result))
    right = {name: [record for record in group if record.correct] for name, group in groups.items()}
    everything = [record for group in right.values() for record in group]
    radii = [value for record in everything for value in (record.radius_certified, record.radius_gradient)]
    ends = [
        (logarithmic(axes, "x", [record.margin for record in everything], most=4), logarithmic(axes, "y", radii))
        for axes in all_axes
    ]
    for axes, name, (left, low) in zip(all_axes, groups, ends, strict=True):
        kind = groups[name][0].kind
        margins = np.maximum([record.margin for record in right[name]], left)
        certified = np.maximum([record.radius_certified for record in right[name]], low)
        estimated = np.maximum([record.radius_gradient for record in right[name]], low)
        axes.scatter(
            margins, estimated, s=24, marker="+", linewidths=0.9, color="0.35", label="estimate: margin / gradient norm"
        )
        axes.scatter(
            margins,
            certified,
            s=16,
            marker=KIND_MARKERS[kind],
            color=KIND_COLOURS[kind],
            alpha=0.8,
            linewidths=0,
            label=f"certified, {kind.upper()}",
        )
        if not len(margins):
            axes.text(0.5, 0.5, "no correct decision", transform=axes.transAxes, ha="center", fontsize=8)
    figure.suptitle("Certified radius of correct decisions, and its first-order estimate", fontsize=10)
    legend(figure, all_axes)
    return figure


def gradient_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Gradient norms at the images: a box from quartile to quartile and the median, lines to the 5 and 95 % quantiles."""
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    least = logarithmic(axes, "x", [record.gradient_norm for group in groups.values() for record in group])
    for place, group in enumerate(groups.values()):
        kind = group[0].kind
        norms = np.maximum([record.gradient_norm for record in group], least)
        boxes = axes.boxplot(
            norms,
            positions=[place],
            orientation="horizontal",
            whis=(5, 95),
            widths=0.6,
            patch_artist=True,
            showfliers=False,
        )
        boxes["boxes"][0].set(facecolor="white", edgecolor=KIND_COLOURS[kind], hatch=KIND_HATCHES[kind])
        boxes["medians"][0].set(color="black", linewidth=2)
    dual = {"inf": "1", "2": "2", "1": "∞"}[result["norm"]]
    axes.set_yticks(range(len(groups)), [titled(name, group) for name, group in groups.items()], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"gradient norm ‖∇S(x)‖ in l{dual} (score per pixel)", fontsize=9)
    axes.set_title("Gradient norms at the images: median, quartiles, 5 and 95 %", fontsize=10)
    return figure


def lipschitz_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """Local Lipschitz constants over ε, medians: sampled (estimate) ≤ certified ≤ global."""
    across = radius_label(result).replace("radius", "ε")
    figure, all_axes = panels(groups, across, "Lipschitz constant of S (score per pixel)")
    order = np.argsort(result["eps"])
    eps = np.array(result["eps"])[order]
    constant = float("inf" if result.get("global_lipschitz") is None else result["global_lipschitz"])
    bounded = math.isfinite(constant)
    medians = {
        name: [
            np.median([[getattr(record.at[index], field) for index in order] for record in group], axis=0)
            for field in ("lipschitz", "sampled")
        ]
        for name, group in groups.items()
    }
    values = np.array([curve for curves in medians.values() for curve in curves])
    for axes, name in zip(all_axes, groups, strict=True):
        kind = groups[name][0].kind
        certified, sampled = medians[name]
        colour, marker = KIND_COLOURS[kind], KIND_MARKERS[kind]
        if bounded:
            axes.axhline(constant, color="black", linewidth=1.2, linestyle="--", label="global bound")
        axes.plot(eps, certified, color=colour, marker=marker, markersize=6, label="certified on the ball")
        axes.plot(
            eps,
            sampled,
            color="0.35",
            marker=marker,
            markerfacecolor="none",
            linestyle=":",
            label="largest sampled gradient (estimate)",
        )
        logarithmic(axes, "y", [*values.ravel(), *([constant] if bounded else [])])
        logarithmic(axes, "x", eps, ticks=eps.tolist(), most=4)
    figure.suptitle("Local Lipschitz constants, medians over the images", fontsize=10)
    legend(figure, all_axes)
    return figure


def roc_figure(groups: Groups, result: Mapping[str, Any]) -> Figure:
    """ROC curves of every OOD set at the first ε: clean, attacked, guaranteed; the threat is on the OOD image."""
    inside = np.array([record.score for group in groups.values() for record in group if record.kind == "id"])
    outside = {name: group for name, group in groups.items() if group[0].kind == "ood"}
    figure, all_axes = panels(outside, "share of ID images rejected", "share of OOD images rejected", height=2.8)
    for axes, group in zip(all_axes, outside.values(), strict=True):
        clean, attacked, guaranteed = outlier_scores(group)
        kinds = {
            "clean": (clean, COLOURS[5], "-", 3.5),
            "attacked": (attacked, COLOURS[1], "--", 2.0),
            "guaranteed": (guaranteed, COLOURS[7], ":", 1.5),
        }
        for label, (scores, colour, style, width) in kinds.items():
            accepted, found = _roc(inside, scores)
            axes.plot(accepted, found, color=colour, linestyle=style, linewidth=width, label=label, clip_on=False)
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
    figure.suptitle(
        f"ROC, OOD images moved by up to ε = {result['eps'][0]:g} in {NORM_NAMES[result['norm']]}", fontsize=10
    )
    legend(figure, all_axes)
    return figure


def score_figure(groups: Groups) -> Figure:
    """Distribution of scores by set, one above the other, and the threshold γ."""
    figure = Figure(figsize=(6.4, 1.2 + 0.75 * len(groups)), layout="constrained")
    values = [record.score for group in groups.values() for record in group]
    threshold = next(iter(groups.values()))[0].threshold
    low, high = min([*values, threshold]), max([*values, threshold])
    pad = 0.03 * (high - low) or 0.5
    edges = np.linspace(low - pad, high + pad, 61)
    first: Axes | None = None
    for place, (name, group) in enumerate(groups.items(), start=1):
        kind = group[0].kind
        axes = figure.add_subplot(len(groups), 1, place, sharex=first)
        first = first or axes
        share = np.histogram([record.score for record in group], edges)[0] / len(group)
        axes.stairs(share, edges, fill=True, facecolor="white", edgecolor=KIND_COLOURS[kind], hatch=KIND_HATCHES[kind])
        axes.stairs(share, edges, color=KIND_COLOURS[kind], linewidth=1.4)
        axes.axvline(threshold, color="black", linewidth=1.2, linestyle="--")
        axes.set_ylim(0, 1.15 * max(float(share.max()), 1e-9))
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_ylabel(titled(name, group), rotation=0, ha="right", va="center", fontsize=8)
        axes.tick_params(labelsize=8, labelbottom=place == len(groups))
    figure.supxlabel("score S(x), higher is more outlying (units of the score)", fontsize=9)
    figure.suptitle(f"Share of images by score; accepted up to γ = {threshold:.4g} (dashed)", fontsize=10)
    return figure


def _thin_labels(axes: Axes) -> None:
    axes.locator_params(axis="x", nbins=5)
    axes.set_yticks([0, 0.5, 1])


def share_above(radii: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of radii that reach each point of the grid; 0 is a wrong decision, and never reaches."""
    kept: NDArray[np.float64] = ((radii[None] >= grid[:, None]) & (radii[None] > 0)).mean(1)
    return kept


def outlier_scores(
    group: Sequence[Certificate],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scores of OOD images, clean, and attacked and guaranteed at the first ε, as the areas count them."""
    clean = np.array([record.score for record in group])
    attacked, lower = (np.array([getattr(record.at[0], name) for record in group]) for name in ("attacked", "lower"))
    return clean, *worst_scores(clean, attacked, lower)


def _roc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of ID and of OOD images above every threshold; ties count against the detector."""
    thresholds = np.concatenate([[-np.inf], np.unique(inside), [np.inf]])
    rejected_in = 1 - np.searchsorted(np.sort(inside), thresholds, "left") / len(inside)
    rejected_out = 1 - np.searchsorted(np.sort(outside), thresholds, "right") / len(outside)
    return rejected_in, rejected_out
