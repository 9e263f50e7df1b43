"""Histograms of scores with the threshold γ, a picture for every kind of training: seeds together, and each as a thin line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from certood.analysis.reporting.drawing import Picture, picture
from certood.analysis.reporting.kinds import ALL, Kind, kinds_of_training
from certood.analysis.reporting.panels import KIND_COLOURS, KIND_HATCHES
from certood.analysis.reporting.runs import Run

BINS = 40


@dataclass(frozen=True)
class _Scale:
    """What the axis of a picture shows: scores, or, of several seeds, whose γ differ, scores minus the γ of their run."""

    thresholds: tuple[float, ...]

    @property
    def seeds(self) -> int:
        """How many runs are shown."""
        return len(self.thresholds)

    @property
    def threshold(self) -> float:
        """Where γ stands on the axis."""
        return self.thresholds[0] if self.seeds == 1 else 0.0

    @property
    def text(self) -> str:
        """γ of one run, the least and the greatest of several."""
        low, high = min(self.thresholds), max(self.thresholds)
        found = f"γ = {low:.4g}" if self.seeds == 1 else f"γ from {low:.4g} to {high:.4g}"
        return found.replace("-", "−")

    @property
    def label(self) -> str:
        """What stands at the axis."""
        return "score S, higher is more outlying" if self.seeds == 1 else "score minus its run's γ; above 0 is rejected"

    def values(self, scores: NDArray[np.float64], run: int) -> NDArray[np.float64]:
        """Scores of the images of a run on the axis."""
        return scores if self.seeds == 1 else scores - self.thresholds[run]


def score_histograms(runs: Sequence[Run], groups: Mapping[str, Sequence[str]]) -> list[Picture]:
    """Scores of the certified images of every kind of training: ID images and every group of OOD sets, and γ."""
    found = (_histogram(kind, groups) for kind in kinds_of_training(runs))
    return [one for one in found if one is not None]


def _histogram(kind: Kind, groups: Mapping[str, Sequence[str]]) -> Picture | None:
    runs = [run for run in kind.runs if run.certificates]
    if not runs:
        return None
    scale = _Scale(tuple(run.certificates[0].threshold for run in runs))
    shown = {name: parts for name, parts in _parts(runs, groups, scale).items() if all(len(part) for part in parts)}
    every = np.concatenate([*(part for parts in shown.values() for part in parts), [scale.threshold]])
    counts = ", ".join(f"{sum(map(len, parts))} {name}" for name, parts in shown.items())
    name = runs[0].name if len(runs) == 1 else f"{kind.name} ({len(runs)} seeds)"
    return picture(
        [
            partial(_draw_strip, name=one, parts=parts, every=every, scale=scale, last=one == list(shown)[-1])
            for one, parts in shown.items()
        ],
        f"Scores of {name}: {counts} images, {scale.text}",
        title=name,
        height=0.9 + 0.75 * len(shown),
    )


def _parts(
    runs: Sequence[Run], groups: Mapping[str, Sequence[str]], scale: _Scale
) -> dict[str, list[NDArray[np.float64]]]:
    """The values on the axis of every run, for the ID images and every group of OOD sets."""
    chosen = {"OOD" if group == ALL else f"{group} OOD": set(sets) for group, sets in groups.items()}
    found: dict[str, list[NDArray[np.float64]]] = {"ID": [], **{name: [] for name in chosen}}
    for place, run in enumerate(runs):
        records = run.certificates
        found["ID"].append(scale.values(np.array([one.score for one in records if one.kind == "id"]), place))
        for name, sets in chosen.items():
            found[name].append(scale.values(np.array([one.score for one in records if one.set in sets]), place))
    return found


def _draw_strip(
    axes: Axes,
    name: str,
    parts: Sequence[NDArray[np.float64]],
    every: NDArray[np.float64],
    scale: _Scale,
    *,
    last: bool,
) -> None:
    kind = "id" if name == "ID" else "ood"
    colour = KIND_COLOURS[kind]
    low, high = float(every.min()), float(every.max())
    pad = 0.03 * (high - low) or 0.5
    edges = np.linspace(low - pad, high + pad, BINS + 1)
    shares = [np.histogram(part, edges)[0] / len(part) for part in parts]
    share = np.histogram(np.concatenate(parts), edges)[0] / sum(map(len, parts))
    axes.stairs(share, edges, fill=True, facecolor="none", edgecolor=colour, hatch=KIND_HATCHES[kind], linewidth=0)
    axes.stairs(share, edges, fill=True, facecolor=colour, alpha=0.25)
    if len(parts) > 1:
        for one in shares:
            axes.stairs(one, edges, color=colour, linewidth=0.7, alpha=0.7)
    axes.stairs(share, edges, color=colour, linewidth=1.4)
    axes.axvline(scale.threshold, color=axes.xaxis.label.get_color(), linewidth=1.3, linestyle="--", label=scale.text)
    axes.set_ylabel(
        f"{name} ({sum(map(len, parts))})\n{_accepted(parts, scale.threshold)} accepted",
        rotation=0,
        ha="right",
        va="center",
        fontsize=9.5,
    )
    axes.set_ylim(0, 1.15 * max(float(np.max(shares)), 1e-9))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelbottom=last)
    if last:
        axes.set_xlabel(scale.label)


def _accepted(parts: Sequence[NDArray[np.float64]], threshold: float) -> str:
    """The share of accepted images: of several seeds the mean, and the standard deviation over them."""
    shares = [100 * float((part <= threshold).mean()) for part in parts]
    return f"{shares[0]:.0f} %" if len(shares) == 1 else f"{np.mean(shares):.0f} ± {np.std(shares, ddof=1):.0f} %"
