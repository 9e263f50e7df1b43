"""Histograms of scores with the threshold γ, a picture for every kind of training."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from certood.analysis.reporting.drawing import Picture, picture
from certood.analysis.reporting.kinds import ALL, kinds_of_training
from certood.analysis.reporting.panels import KIND_COLOURS, KIND_HATCHES
from certood.analysis.reporting.runs import Run

BINS = 40


def score_histograms(runs: Sequence[Run], groups: Mapping[str, Sequence[str]]) -> list[Picture]:
    """Scores of the certified images of the first run of every kind: ID images and every group of OOD sets, and γ."""
    pictures = []
    for kind in kinds_of_training(runs):
        run = kind.first
        if not run.certificates:
            continue
        parts = {"ID": np.array([record.score for record in run.certificates if record.kind == "id"])}
        for group, sets in groups.items():
            name = "OOD" if group == ALL else f"{group} OOD"
            parts[name] = np.array([record.score for record in run.certificates if record.set in sets])
        shown = {name: values for name, values in parts.items() if len(values)}
        threshold = run.certificates[0].threshold
        pictures.append(
            picture(
                [
                    partial(
                        _draw_strip,
                        name=name,
                        values=values,
                        every=np.concatenate([*shown.values(), [threshold]]),
                        threshold=threshold,
                        last=name == list(shown)[-1],
                    )
                    for name, values in shown.items()
                ],
                f"Scores of {run.name}: {', '.join(f'{len(values)} {name}' for name, values in shown.items())} images, "
                f"γ = {threshold:.4g}",
                title=run.name,
                height=0.9 + 0.75 * len(shown),
            )
        )
    return pictures


def _draw_strip(
    axes: Axes,
    name: str,
    values: NDArray[np.float64],
    every: NDArray[np.float64],
    threshold: float,
    *,
    last: bool,
) -> None:
    kind = "id" if name == "ID" else "ood"
    colour = KIND_COLOURS[kind]
    low, high = float(every.min()), float(every.max())
    pad = 0.03 * (high - low) or 0.5
    share = np.histogram(values, np.linspace(low - pad, high + pad, BINS + 1))[0] / len(values)
    edges = np.linspace(low - pad, high + pad, BINS + 1)
    axes.stairs(share, edges, fill=True, facecolor="none", edgecolor=colour, hatch=KIND_HATCHES[kind], linewidth=0)
    axes.stairs(share, edges, fill=True, facecolor=colour, alpha=0.25)
    axes.stairs(share, edges, color=colour, linewidth=1.4)
    axes.axvline(
        threshold,
        color=axes.xaxis.label.get_color(),
        linewidth=1.3,
        linestyle="--",
        label=f"γ = {threshold:.4g}".replace("-", "−"),
    )
    accepted = float((values <= threshold).mean())
    right = f"{100 * accepted:.0f} % accepted"
    axes.set_ylabel(f"{name} ({len(values)})\n{right}", rotation=0, ha="right", va="center", fontsize=9.5)
    axes.set_ylim(0, 1.15 * max(float(share.max()), 1e-9))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelbottom=last)
    if last:
        axes.set_xlabel("score S, higher is more outlying")
