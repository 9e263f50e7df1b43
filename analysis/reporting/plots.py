"""The figures of a report, over several runs, as PNG data for an HTML page, each for a light and for a dark page."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from certood.analysis.records import Certificate
from certood.analysis.reporting.figures import COLOURS, MARKERS, NORM_NAMES, STYLES, share_above
from certood.analysis.reporting.kinds import Kind, kinds_of_training
from certood.analysis.reporting.links import RunPoint
from certood.analysis.reporting.runs import Run
from certood.errors import CertoodError
from certood.files import write_atomically

Draw = Callable[[Axes, Sequence[str]], None]

# Text and paper of the page in either scheme; on a dark page the palette's black and dark blue would vanish.
LIGHT, DARK = ("#1a1a1a", "#ffffff"), ("#e8e8e8", "#1f2228")
LIGHTER = {"#0072B2": "#5AA9E6", "#D55E00": "#FF9147", "#000000": "#FFFFFF", "#7F7F7F": "#B0B0B0"}
PIXELS_PER_INCH = 150
PALETTE = 96
THUMBNAIL = 96


@dataclass(frozen=True)
class Picture:
    """An image of the page as data URIs: `dark` is for a dark page, and empty where both look alike."""

    light: str
    dark: str
    alt: str
    caption: str = ""


def curves(runs: Sequence[Run]) -> list[Picture]:
    """Certified fraction over the radius: all runs of one norm and kind of certificate in one figure, ID and OOD apart."""
    pictures = []
    for norm, smoothed, own in _by_certificate(runs):
        for kind in ("id", "ood"):
            radii = _radii_by_run(own, kind)
            if radii:
                draw, label = _curve_drawing(runs, radii, kind, norm, smoothed=smoothed)
                pictures.append(_picture(draw, f"Share of {kind.upper()} images over the {label}: {', '.join(radii)}"))
    return pictures


def write_curves(runs: Sequence[Run], path: Path) -> None:
    """The certified fractions of ID and of OOD images beside each other as a PNG file, for the first norm of the runs.

    Raises CertoodError where no run is certified.
    """
    groups = _by_certificate(runs)
    if not groups:
        raise CertoodError("no run here is certified, so that there are no radii to draw")
    norm, smoothed, own = groups[0]
    found = [(kind, _radii_by_run(own, kind)) for kind in ("id", "ood")]
    draws = [_curve_drawing(runs, radii, kind, norm, smoothed=smoothed)[0] for kind, radii in found if radii]
    write_atomically(path, _drawn(draws, *LIGHT, dark=False).getvalue())


def _by_certificate(runs: Sequence[Run]) -> list[tuple[str, bool, list[Run]]]:
    """Runs with certificates by norm, and by whether these are of the smoothed detector."""
    certified = [run for run in runs if run.certificates]
    groups = dict.fromkeys((str(run.norm), run.smoothed) for run in certified)
    return [
        (norm, smoothed, [run for run in certified if (str(run.norm), run.smoothed) == (norm, smoothed)])
        for norm, smoothed in groups
    ]


def _radii_by_run(runs: Sequence[Run], kind: str) -> dict[str, NDArray[np.float64]]:
    radii = {run.name: _radii(run, kind) for run in runs}
    return {name: values for name, values in radii.items() if len(values)}


def _curve_drawing(
    runs: Sequence[Run], radii: dict[str, NDArray[np.float64]], kind: str, norm: str, *, smoothed: bool
) -> tuple[Draw, str]:
    """What draws these radii, and what they are called; every run looks alike in all figures."""
    title = "ID images that stay accepted" if kind == "id" else "OOD images that stay rejected"
    label = f"{'smoothed' if smoothed else 'certified'} radius in {NORM_NAMES[norm]} (pixels)"
    places = {run.name: place for place, run in enumerate(runs) if run.name in radii}
    return partial(_draw_curves, radii=radii, places=places, title=title, label=label), label


def threat_curves(runs: Sequence[Run]) -> list[Picture]:
    """GAUC and AAUC over ε, both from the clean AUC at 0 on, a line for every kind of training: one figure for each norm."""
    kinds = kinds_of_training(runs)
    pictures = []
    for norm in dict.fromkeys(kind.norm for kind in kinds):
        own = [kind for kind in kinds if kind.norm == norm]
        draws = [
            partial(_draw_threat, kinds=own, values=values, title=title, label=f"ε in {NORM_NAMES[norm]} (pixels)")
            for values, title in (
                ([kind.gauc for kind in own], "guaranteed: GAUC, from certified bounds"),
                ([kind.aauc for kind in own], "attacked: AAUC, what was found"),
            )
        ]
        names = ", ".join(kind.name for kind in own)
        pictures.append(_picture(draws, f"GAUC and AAUC over ε in {NORM_NAMES[norm]}: {names}"))
    return pictures


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
        pictures.append(_picture(draw, f"{side} against {bottom}, {run.name}", caption))
    return pictures


def run_scatter(points: Sequence[RunPoint]) -> Picture | None:
    """Mean gradient norm of ID images against mean FPR95, a run a point; None for fewer than two."""
    if len(points) < 2:
        return None

    def draw(axes: Axes, colours: Sequence[str]) -> None:
        for index, point in enumerate(points):
            axes.scatter(
                [point.gradient_norm],
                [100 * point.fpr95],
                s=60,
                color=colours[index % len(colours)],
                marker=MARKERS[index % len(MARKERS)],
                label=point.name,
                zorder=3,
            )
        axes.margins(0.12)
        axes.set(xlabel="mean gradient norm of ID images (estimate)", ylabel="mean FPR95 (%)")

    return _picture(draw, "Mean FPR95 against the mean gradient norm of ID images, a run a point")


def thumbnail(image: NDArray[np.uint8], alt: str) -> Picture:
    """A uint8 image (C, H, W) as a small picture: a small one enlarged in whole steps, a large one reduced."""
    array = np.asarray(image, dtype=np.uint8)
    picture = Image.fromarray(array[0] if array.shape[0] == 1 else array[:3].transpose(1, 2, 0))
    if max(picture.size) > 2 * THUMBNAIL:
        picture.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    scale = max(1, THUMBNAIL // max(picture.size))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    memory = io.BytesIO()
    picture.save(memory, "PNG", optimize=True)
    return Picture(_encoded(memory), "", alt)


def positive_pairs(records: Sequence[Certificate], kind: str, first: str, second: str) -> list[tuple[float, float]]:
    """Two columns of the records of a kind, where both are finite and above 0, as logarithmic axes need."""
    pairs = [(getattr(record, first), getattr(record, second)) for record in records if record.kind == kind]
    return [pair for pair in pairs if all(math.isfinite(value) and value > 0 for value in pair)]


def _radii(run: Run, kind: str) -> NDArray[np.float64]:
    column = "radius_smoothing" if run.smoothed else "radius_certified"
    values = np.array([getattr(record, column) for record in run.certificates if record.kind == kind], dtype=np.float64)
    # What is not a number is not certified.
    return np.nan_to_num(values, nan=0.0, posinf=np.finfo(np.float64).max)


def _draw_curves(
    axes: Axes,
    colours: Sequence[str],
    radii: dict[str, NDArray[np.float64]],
    places: dict[str, int],
    title: str,
    label: str,
) -> None:
    finite = np.concatenate([values[values < 1e6] for values in radii.values()])
    end = float(np.quantile(finite, 0.99)) if len(finite) else 0.0
    grid = np.linspace(0, 1.05 * max(end, 1e-6), 400)
    for name, values in radii.items():
        place = places[name]
        axes.plot(
            grid,
            share_above(values, grid),
            color=colours[place % len(colours)],
            linestyle=STYLES[place % len(STYLES)],
            marker=MARKERS[place % len(MARKERS)],
            markevery=(20 + 7 * place % 40, 60),
            markersize=5,
            linewidth=1.8,
            label=name,
        )
    axes.set(title=title, xlabel=label, ylabel="share of images", ylim=(0, 1.02), xlim=(0, grid[-1]))


def _draw_threat(
    axes: Axes,
    colours: Sequence[str],
    kinds: Sequence[Kind],
    values: Sequence[NDArray[np.float64]],
    title: str,
    label: str,
) -> None:
    for place, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        colour = colours[place % len(colours)]
        axes.plot(
            kind.eps,
            100 * value.mean(0),
            color=colour,
            linestyle=STYLES[place % len(STYLES)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=5,
            linewidth=1.8,
            label=kind.name,
        )
        if len(value) > 1:
            axes.fill_between(kind.eps, *(100 * end for end in (value.min(0), value.max(0))), color=colour, alpha=0.15)
    axes.set(title=title, xlabel=label, ylim=(-2, 102))
    axes.set_xlim(left=0)
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("AUC in per cent, mean over the OOD sets")


def _draw_scatter(
    axes: Axes, colours: Sequence[str], pairs: dict[str, list[tuple[float, float]]], bottom: str, side: str
) -> None:
    axes.set(xlabel=bottom, ylabel=side, xscale="log", yscale="log")
    for place, (kind, values) in enumerate(pairs.items()):
        if values:
            axes.scatter(
                [one for one, _ in values],
                [two for _, two in values],
                s=22,
                alpha=0.75,
                linewidths=0.9,
                # ID filled, OOD hollow: they differ without colour as well.
                facecolors=colours[0] if place == 0 else "none",
                edgecolors=colours[place],
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


def _picture(draw: Draw | Sequence[Draw], alt: str, caption: str = "") -> Picture:
    """What one function draws, or several beside each other on one scale upwards."""
    draws = [draw] if callable(draw) else draw
    light, dark = (_encoded(_drawn(draws, *scheme, dark=scheme is DARK)) for scheme in (LIGHT, DARK))
    return Picture(light, dark, alt, caption)


def _drawn(draws: Sequence[Draw], ink: str, paper: str, *, dark: bool) -> io.BytesIO:
    """A PNG file with a palette, in these colours of text and paper."""
    colours = [LIGHTER.get(colour, colour) for colour in COLOURS] if dark else list(COLOURS)
    settings: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
    )
    with rc_context({**settings, "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9}):
        figure = Figure(figsize=(5.4 if len(draws) == 1 else 9.6, 3.9), layout="constrained", facecolor=paper)
        FigureCanvasAgg(figure)
        first: Axes | None = None
        for place, draw in enumerate(draws, start=1):
            axes = figure.add_subplot(1, len(draws), place, facecolor=paper, sharey=first)
            draw(axes, colours)
            axes.spines[["top", "right"]].set_visible(False)
            first = first or axes
        assert first is not None
        if len(draws) == 1:
            first.legend(framealpha=0.8, facecolor=paper, edgecolor="none").set_zorder(5)
        else:
            handles, labels = first.get_legend_handles_labels()
            columns = max(1, 120 // (6 + max(map(len, labels))))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, framealpha=0, edgecolor="none")
        memory = io.BytesIO()
        figure.savefig(memory, format="png", dpi=PIXELS_PER_INCH)
    picture = Image.open(memory).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    memory = io.BytesIO()
    picture.save(memory, "PNG", optimize=True)
    return memory


def _encoded(memory: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode("ascii")
