"""How a picture of a report is made: for a light and for a dark page, with the legend below the data and values to hover over."""

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from certood.analysis.reporting.panels import COLOURS, MARKERS, STYLES

Draw = Callable[[Axes], None]

# Text and paper of a picture on a light and on a dark page.
LIGHT, DARK = ("#1a1a1a", "#ffffff"), ("#e8e8e8", "#1f2228")
# Below 1 it lightens what is neither text nor paper, so that every colour stands out from the dark paper.
LIGHTENING = 0.6
PIXELS_PER_INCH = 180
PALETTE = 96
THUMBNAIL = 96
WIDTH, WIDE, HEIGHT = 4.4, 9.6, 2.6
# Inches of a line of the legend.
LINE = 0.21
# Characters of a legend that fit beside each other, per inch.
LETTERS = 12
# Points of a line that can be hovered over.
HOVERED = 60


@dataclass(frozen=True)
class Picture:
    """An image of the page as data URIs: `dark` is for a dark page, and empty where both look alike.

    `values` is JSON for the script of the page: of every panel its place in the picture, the range of its abscissa and the
    values of its lines.
    """

    light: str
    dark: str
    alt: str
    caption: str = ""
    title: str = ""
    values: str = ""


def picture(
    draw: Draw | Sequence[Draw], alt: str, caption: str = "", title: str = "", height: float = HEIGHT
) -> Picture:
    """What one function draws on axes, or several below each other on one abscissa."""
    image, values = drawn([draw] if callable(draw) else list(draw), height=height, stacked=True)
    return Picture(_encoded(as_png(image)), _encoded(as_png(darkened(image))), alt, caption, title, values)


def line_style(place: int) -> dict[str, Any]:
    """How the lines of one kind of training look in all pictures: their colour and mark."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.8,
    }


def dashes(place: int) -> Any:
    """The dashes of a kind of training, where dashes say nothing else."""
    return STYLES[place % len(STYLES)]


def drawn(draws: Sequence[Draw], *, height: float = HEIGHT, stacked: bool = False) -> tuple[Image.Image, str]:
    """An image with a palette, for a light page, and what can be hovered over.

    Axes beside each other share the ordinate, stacked ones the abscissa.
    """
    ink, paper = LIGHT
    settings: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
    )
    with rc_context({**settings, "axes.titlesize": 11, "axes.labelsize": 10.5, "legend.fontsize": 9.5}):
        width = WIDTH if stacked or len(draws) == 1 else WIDE
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=paper)
        FigureCanvasAgg(figure)
        all_axes: list[Axes] = []
        for place, draw in enumerate(draws, start=1):
            first = all_axes[0] if all_axes else None
            grid = (len(draws), 1, place) if stacked else (1, len(draws), place)
            shared: dict[str, Any] = {"sharex" if stacked else "sharey": first}
            axes = figure.add_subplot(*grid, facecolor=paper, **shared)
            draw(axes)
            axes.spines[["top", "right"]].set_visible(False)
            all_axes.append(axes)
        # The legend has its own place, and takes none of the data.
        figure.set_size_inches(width, height + LINE * _legend(figure, all_axes, width))
        memory = io.BytesIO()
        figure.savefig(memory, format="png", dpi=PIXELS_PER_INCH)
    image = Image.open(memory).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    return image, _hovered(figure, all_axes)


def darkened(image: Image.Image) -> Image.Image:
    """An image with a palette for a dark page: its light and dark exchanged, its hues kept."""
    palette = np.array(image.getpalette(), dtype=np.float64).reshape(-1, 3) / 255
    light, dark = ([np.array(to_rgb(part)) for part in scheme] for scheme in (LIGHT, DARK))
    lightness = (palette.min(1, keepdims=True) + palette.max(1, keepdims=True)) / 2
    darkest = light[0].mean()
    turned = np.clip((1 - lightness) / (1 - darkest), 0, 1) ** LIGHTENING
    colours = dark[1] + (dark[0] - dark[1]) * turned + palette - lightness
    found = image.copy()
    found.putpalette(np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8).ravel().tolist())
    return found


def as_png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    memory = io.BytesIO()
    image.save(memory, "PNG", optimize=True)
    return memory.getvalue()


def thumbnail(image: NDArray[np.uint8], alt: str) -> Picture:
    """A uint8 image (C, H, W) as a small picture: a small one enlarged in whole steps, a large one reduced."""
    array = np.asarray(image, dtype=np.uint8)
    small = Image.fromarray(array[0] if array.shape[0] == 1 else array[:3].transpose(1, 2, 0))
    if max(small.size) > 2 * THUMBNAIL:
        small.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    scale = max(1, THUMBNAIL // max(small.size))
    small = small.resize((small.width * scale, small.height * scale), Image.Resampling.NEAREST)
    return Picture(_encoded(as_png(small)), "", alt)


def _legend(figure: Figure, all_axes: Sequence[Axes], width: float) -> int:
    """One legend for all axes, below them, where it hides nothing; the number of its lines."""
    entries = {
        label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if not entries:
        return 0
    columns = min(len(entries), max(1, int(LETTERS * width) // (6 + max(map(len, entries)))))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, framealpha=0, edgecolor="none"
    )
    return math.ceil(len(entries) / columns)


def _hovered(figure: Figure, all_axes: Sequence[Axes]) -> str:
    """Panels with lines that have a name: place as shares of the picture from the left and the top, abscissa, values."""
    panels = []
    for axes in all_axes:
        lines = []
        for line in axes.get_lines():
            name = str(line.get_gid() or "")
            if name:
                across, up = (np.asarray(data, dtype=np.float64) for data in line.get_data())
                kept = np.unique(np.linspace(0, len(across) - 1, min(HOVERED, len(across))).astype(int))
                values = [[_digits(value) for value in part[kept]] for part in (across, up)]
                lines.append({"name": name, "x": values[0], "y": values[1]})
        if lines:
            box = axes.get_position()
            low, high = axes.get_xlim()
            panels.append(
                {
                    "box": [_digits(end) for end in (box.x0, 1 - box.y1, box.x1, 1 - box.y0)],
                    "x": [_digits(low), _digits(high)],
                    "label": axes.get_xlabel(),
                    "lines": lines,
                }
            )
    return json.dumps(panels, ensure_ascii=False, separators=(",", ":")) if panels else ""


def _digits(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _encoded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
