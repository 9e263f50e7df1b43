"""Curves of a report, a line for every kind of training: AUC over ε, certified fraction over the radius, ROC, and training."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from certood.analysis.reporting.columns import NORM_NAMES
from certood.analysis.reporting.drawing import Draw, Picture, as_png, dashes, drawn, line_style, picture
from certood.analysis.reporting.figures import outlier_scores, share_above
from certood.analysis.reporting.kinds import (
    ALL,
    Curve,
    Kind,
    certified_sets,
    kinds_of_training,
    ood_groups,
    threat_curve,
)
from certood.analysis.reporting.runs import Run
from certood.errors import CertoodError
from certood.files import write_atomically

Groups = Mapping[str, Sequence[str]]

POINTS = 200
# Of training.csv: the column, what it is called, and whether it is drawn on a logarithmic axis.
TRAINING = (
    ("loss", "loss", True),
    ("accuracy", "accuracy of held-out ID images (%)", False),
    ("gradient_norm_in", "gradient norm of ID images (estimate)", True),
    ("gradient_norm_out", "gradient norm of outliers (estimate)", True),
)


def threat_curves(runs: Sequence[Run], groups: Groups) -> list[Picture]:
    """GAUC and AAUC over ε, both from the clean AUC at 0 on: a picture for each norm and group of OOD sets.

    The true AUC lies between the two lines of a kind of training, in the area that is shaded.
    """
    kinds = kinds_of_training(runs)
    pictures = []
    for norm in _norms(kinds):
        for group, sets in groups.items():
            found = [(place, threat_curve(kind, sets)) for place, kind in enumerate(kinds) if kind.first.norm == norm]
            own = [(place, curve) for place, curve in found if curve is not None]
            if own:
                label = f"ε in {NORM_NAMES[norm]} (pixels)"
                names = ", ".join(curve.kind.label for _, curve in own)
                pictures.append(
                    picture(
                        partial(_draw_threat, curves=own, label=label),
                        f"AUC, AAUC and GAUC over {label}, {_called(group)}: {names}",
                        title=_called(group),
                    )
                )
    return pictures


def fractions(runs: Sequence[Run], groups: Groups) -> list[Picture]:
    """Certified fraction over the radius, of ID images and of each group of OOD sets: pictures for each norm and certificate."""
    kinds = kinds_of_training(runs)
    return [
        picture(
            partial(_draw_fractions, radii=radii, kinds=kinds, label=label),
            f"Share of images whose decision is kept, over the {label}, {title}: "
            + ", ".join(kinds[place].label for place in radii),
            title=title,
        )
        for title, radii, label in _fraction_panels(kinds, groups)
    ]


def write_fractions(runs: Sequence[Run], path: Path) -> None:
    """The certified fractions of ID and of OOD images beside each other as a PNG file, for the first norm of the runs.

    Raises CertoodError where no run is certified.
    """
    kinds = kinds_of_training(runs)
    groups = ood_groups(runs)
    panels = _fraction_panels(kinds, groups)
    if not panels:
        raise CertoodError("no run here is certified, so that there are no radii to draw")
    first = panels[0][2]
    draws: list[Draw] = [
        partial(_draw_fractions, radii=radii, kinds=kinds, label=label, title=title)
        for title, radii, label in panels
        if label == first
    ]
    write_atomically(path, as_png(drawn(draws)[0]))


def roc_curves(runs: Sequence[Run], groups: Groups) -> list[Picture]:
    """ROC of certified images, clean and with OOD images at their certified lower bounds: a picture for each norm, ε and group.

    Means over the sets and the runs of a kind, so that the area under a line is the mean AUC.
    """
    kinds = kinds_of_training(runs)
    certified = [(place, kind) for place, kind in enumerate(kinds) if kind.first.certified and _inside(kind.first)]
    threats = dict.fromkeys((str(kind.first.norm), kind.first.certificates[0].at[0].eps) for _, kind in certified)
    pictures = []
    for norm, eps in threats:
        for group, sets in groups.items():
            own = {
                place: _rates(kind, sets)
                for place, kind in certified
                if (kind.first.norm, kind.first.certificates[0].at[0].eps) == (norm, eps)
                and set(sets) & set(certified_sets(kind.first))
            }
            if own:
                bound = f"guaranteed at ε = {eps:g} in {NORM_NAMES[norm]}"
                pictures.append(
                    picture(
                        partial(_draw_roc, rates=own, kinds=kinds),
                        f"ROC, {_called(group)}, clean and {bound}: {', '.join(kinds[place].label for place in own)}",
                        title=_called(group),
                    )
                )
    return pictures


def training_curves(runs: Sequence[Run]) -> list[Picture]:
    """What training.csv has of every epoch, means over the runs of a kind; what is the same throughout is not drawn."""
    kinds = kinds_of_training(runs)
    pictures = []
    for column, label, logarithmic in TRAINING:
        series = {place: _epochs(kind, column) for place, kind in enumerate(kinds)}
        known = {place: values for place, values in series.items() if len(values) > 1 and np.isfinite(values).all()}
        everything = np.concatenate([*known.values()]) if known else np.zeros(1)
        if np.ptp(everything) > 0:
            pictures.append(
                picture(
                    partial(
                        _draw_training,
                        series=known,
                        kinds=kinds,
                        logarithmic=logarithmic and everything.min() > 0,
                    ),
                    f"{label} by epoch: {', '.join(kinds[place].label for place in known)}",
                    title=label,
                )
            )
    return pictures


def _norms(kinds: Sequence[Kind]) -> list[str]:
    return list(dict.fromkeys(str(kind.first.norm) for kind in kinds if kind.first.certificates))


def _called(group: str) -> str:
    return "all OOD sets" if group == ALL else f"{group} OOD sets"


def _fraction_panels(
    kinds: Sequence[Kind], groups: Groups
) -> list[tuple[str, dict[int, list[NDArray[np.float64]]], str]]:
    """Title, radii by the place of the kind (an array a run) and axis of every panel; what is smoothed stands apart."""
    found = []
    certificates = dict.fromkeys(
        (str(kind.first.norm), kind.first.smoothed) for kind in kinds if kind.first.certificates
    )
    for norm, smoothed in certificates:
        label = f"{'smoothed' if smoothed else 'certified'} radius in {NORM_NAMES[norm]} (pixels)"
        for group, sets in (("id", ()), *groups.items()):
            radii = {
                place: [_radii(run, group, sets) for run in kind.runs]
                for place, kind in enumerate(kinds)
                if (kind.first.norm, kind.first.smoothed) == (norm, smoothed) and len(_radii(kind.first, group, sets))
            }
            title = (
                "ID images that stay accepted"
                if group == "id"
                else f"{'' if group == ALL else group + ' '}OOD that stay rejected"
            )
            if radii:
                found.append((title, radii, label))
    return found


def _radii(run: Run, group: str, sets: Sequence[str]) -> NDArray[np.float64]:
    column = "radius_smoothing" if run.smoothed else "radius_certified"
    values = [
        getattr(record, column)
        for record in run.certificates
        if (record.kind == "id" if group == "id" else record.set in sets)
    ]
    # What is not a number is not certified.
    return np.nan_to_num(np.array(values, dtype=np.float64), nan=0.0, posinf=np.finfo(np.float64).max)


def _inside(run: Run) -> list[float]:
    return [record.score for record in run.certificates if record.kind == "id"]


def _rates(kind: Kind, sets: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of OOD images rejected, clean and guaranteed, where shares 0 to 1 of ID images are: means over runs and sets."""
    clean, bound = [], []
    for run in kind.runs:
        inside = np.array(_inside(run))
        for name in sets:
            group = [record for record in run.certificates if record.set == name]
            if group:
                scores, _, guaranteed = outlier_scores(group)
                clean.append(rejected_at(inside, scores))
                bound.append(rejected_at(inside, guaranteed))
    return np.mean(clean, axis=0), np.mean(bound, axis=0)


def rejected_at(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of OOD images above the threshold that rejects a share of ID images, at the middles of POINTS steps from 0 to 1.

    Ties count against the detector: the mean over the steps is the area under the ROC curve where POINTS is a multiple of the
    number of ID images.
    """
    middles = (np.arange(POINTS) + 0.5) / POINTS
    thresholds = np.sort(inside)[::-1][np.ceil(middles * len(inside)).astype(int) - 1]
    found: NDArray[np.float64] = (outside[None] > thresholds[:, None]).mean(1)
    return found


def _epochs(kind: Kind, column: str) -> NDArray[np.float64]:
    """The mean over the runs of a kind of what they have of every epoch that all have."""
    rows = [[row.get(column, math.nan) for row in run.training] for run in kind.runs]
    length = min(map(len, rows))
    values: NDArray[np.float64] = np.array([row[:length] for row in rows], dtype=np.float64).mean(0)
    return 100 * values if column == "accuracy" else values


def _draw_threat(axes: Axes, curves: Sequence[tuple[int, Curve]], label: str) -> None:
    lowest = 100.0
    for place, curve in curves:
        style = line_style(place)
        gauc, aauc = 100 * curve.gauc.mean(0), 100 * curve.aauc.mean(0)
        axes.fill_between(curve.eps, gauc, aauc, color=style["color"], alpha=0.10, linewidth=0)
        axes.plot(
            curve.eps,
            aauc,
            **style | {"linewidth": 1.2, "markersize": 3},
            linestyle="--",
            gid=f"{curve.kind.label}, AAUC",
        )
        axes.plot(curve.eps, gauc, **style, label=curve.kind.label, gid=f"{curve.kind.label}, GAUC")
        lowest = min(lowest, float(gauc.min()))
    axes.plot([], [], color="0.5", linestyle="-", label="GAUC (certified)")
    axes.plot([], [], color="0.5", linestyle="--", linewidth=1.2, label="AAUC (attacked)")
    # A scale from 0 would hide differences between curves that stay near 100.
    bottom = min(90, 10 * math.floor(lowest / 10)) if lowest > 50 else 0
    axes.set(xlabel=label, ylabel="AUC (%)", ylim=(bottom - 0.02 * (100 - bottom), 100 + 0.02 * (100 - bottom)))
    axes.set_xlim(left=0)


def _draw_fractions(
    axes: Axes,
    radii: Mapping[int, Sequence[NDArray[np.float64]]],
    kinds: Sequence[Kind],
    label: str,
    title: str = "",
) -> None:
    finite = np.concatenate([values[values < 1e6] for of_runs in radii.values() for values in of_runs])
    end = float(np.quantile(finite, 0.99)) if len(finite) else 0.0
    grid = np.linspace(0, 1.05 * max(end, 1e-6), 400)
    for place, of_runs in radii.items():
        axes.plot(
            grid,
            100 * np.mean([share_above(values, grid) for values in of_runs], axis=0),
            **line_style(place),
            linestyle=dashes(place),
            markevery=(20 + 7 * place % 40, 60),
            label=kinds[place].label,
            gid=kinds[place].label,
        )
    axes.set(title=title, xlabel=label, ylim=(0, 102), xlim=(0, grid[-1]))
    spec = axes.get_subplotspec()
    if spec is None or spec.is_first_col():
        axes.set_ylabel("share of images (%)")


def _draw_roc(
    axes: Axes,
    rates: Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]],
    kinds: Sequence[Kind],
) -> None:
    middles = 100 * (np.arange(POINTS) + 0.5) / POINTS
    for place, (clean, guaranteed) in rates.items():
        style = line_style(place) | {"markevery": (10 + 7 * place % 40, 50)}
        label = kinds[place].label
        axes.plot(middles, 100 * clean, **style, label=label, gid=label)
        axes.plot(
            middles,
            100 * guaranteed,
            **style | {"linewidth": 1.2, "markersize": 3},
            linestyle="--",
            gid=f"{label}, guaranteed",
        )
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=0.8, zorder=0)
    axes.plot([], [], color="0.5", linestyle="-", label="clean")
    axes.plot([], [], color="0.5", linestyle="--", linewidth=1.2, label="guaranteed")
    axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="ID images rejected (%)", ylabel="OOD images rejected (%)")


def _draw_training(
    axes: Axes,
    series: Mapping[int, NDArray[np.float64]],
    kinds: Sequence[Kind],
    *,
    logarithmic: bool,
) -> None:
    for place, values in series.items():
        axes.plot(
            np.arange(1, len(values) + 1),
            values,
            **line_style(place),
            linestyle=dashes(place),
            markevery=(place % max(1, len(values) // 4), max(1, len(values) // 4)),
            label=kinds[place].label,
            gid=kinds[place].label,
        )
    axes.set(xlabel="epoch", yscale="log" if logarithmic else "linear")
    axes.set_xlim(left=1)
    if logarithmic:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
