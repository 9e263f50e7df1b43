"""The figures of a report, over several runs, as PNG data for an HTML page."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from certood.analysis.figures import COLOURS, MARKERS, NORM_NAMES, STYLES
from certood.analysis.reporting.runs import Run


def curves(runs: Sequence[Run]) -> str | None:
    """Certified fraction over the radius of all runs, ID images left and OOD images right."""
    certified = [run for run in runs if run.certificates and not run.smoothed]
    if not certified:
        return None
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for place, kind in enumerate(("id", "ood"), start=1):
        axes = figure.add_subplot(1, 2, place)
        all_radii = [r.radius_certified for run in certified for r in run.certificates if r.kind == kind]
        if not all_radii:
            continue
        grid = np.linspace(0, 1.02 * max(float(np.quantile(all_radii, 0.99)), 1e-6), 300)
        for index, run in enumerate(certified):
            radii = np.array([record.radius_certified for record in run.certificates if record.kind == kind])
            share = ((radii[None] >= grid[:, None]) & (radii[None] > 0)).mean(1)
            axes.plot(
                grid, share, color=COLOURS[index % len(COLOURS)], linestyle=STYLES[index % len(STYLES)], label=run.name
            )
        assert certified[0].certification is not None
        norm = NORM_NAMES[certified[0].certification["norm"]]
        title = "ID images that stay accepted" if kind == "id" else "OOD images that stay rejected"
        axes.set(title=title, xlabel=f"certified radius in {norm} (pixels)", ylabel="share of images", ylim=(0, 1.02))
        _finish(axes)
    return _png(figure)


def scatter(run: Run) -> str | None:
    """Gradient norm against certified Lipschitz constant, and gradient radius against certified radius, an image a point."""
    right = [record for record in run.certificates if record.correct and record.margin > 0]
    if not right or run.smoothed:
        return None
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    columns = (("gradient_norm", "lipschitz_certified"), ("radius_gradient", "radius_certified"))
    labels = (
        ("gradient norm (estimate)", "certified Lipschitz constant"),
        ("gradient radius (estimate)", "certified radius"),
    )
    for place, ((first, second), (bottom, side)) in enumerate(zip(columns, labels, strict=True), start=1):
        axes = figure.add_subplot(1, 2, place)
        for index, kind in enumerate(("id", "ood")):
            part = [record for record in right if record.kind == kind]
            axes.scatter(
                [max(getattr(record, first), 1e-9) for record in part],
                [max(getattr(record, second), 1e-9) for record in part],
                s=12,
                alpha=0.6,
                linewidths=0,
                color=COLOURS[index],
                marker=MARKERS[index],
                label=kind.upper(),
            )
        ends = [*axes.get_xlim(), *axes.get_ylim()]
        low, high = max(min(ends), 1e-9), max(ends)
        axes.plot([low, high], [low, high], color="0.7", linewidth=0.8, zorder=0)
        axes.set(xlabel=bottom, ylabel=side, xscale="log", yscale="log")
        _finish(axes)
    return _png(figure)


def run_scatter(points: Sequence[tuple[str, float, float]]) -> str | None:
    """Mean gradient norm of ID images against mean FPR95, a run a point."""
    if len(points) < 2:
        return None
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (name, norm, fpr) in enumerate(points):
        axes.scatter(
            [norm], [100 * fpr], color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], label=name
        )
    axes.set(xlabel="mean gradient norm of ID images (estimate)", ylabel="mean FPR95 (%)")
    _finish(axes)
    return _png(figure)


def thumbnail(image: Any) -> str:
    """A uint8 image (C, H, W), enlarged without smoothing, as PNG data."""
    from PIL import Image  # noqa: PLC0415

    array = np.asarray(image, dtype=np.uint8)
    picture = Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0))
    scale = max(1, 96 // max(picture.size))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    memory = io.BytesIO()
    picture.save(memory, "PNG")
    return _encoded(memory)


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)


def _png(figure: Figure) -> str:
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=130)
    return _encoded(memory)


def _encoded(memory: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode("ascii")
