"""The summary of a report and the leaderboard: a row for every kind of training and group of OOD sets, seeds put together."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from scipy import stats

from certood.analysis.intervals import CONFIDENCE, Interval, area_interval, median_interval, share_interval
from certood.analysis.records import Certificate
from certood.analysis.reporting.columns import DEVIATION, NORM_NAMES, Column, Row, with_interval
from certood.analysis.reporting.kinds import ALL, Kind, certified_sets, kinds_of_training, ood_groups
from certood.analysis.reporting.runs import Run

# What rows must agree in for their clean benchmarks, and for their certified numbers, to be compared.
MEASURED_ALIKE = ("set", "score", "images")
CERTIFIED_ALIKE = ("set", "score", "norm", "eps", "certified_images")


@dataclass(frozen=True)
class Measured:
    """A number of a run, 0 to `most`, and its 95 % interval over images, None where there is none."""

    value: float
    interval: Interval | None = None
    most: float = math.inf


@dataclass(frozen=True)
class Measure:
    """A column of the summary and how it is read from a run and a group of OOD sets; None where it is not known."""

    column: Column
    of: Callable[[Run, Sequence[str]], Measured | None]
    of_group: bool = True


def measured(run: Run, name: str, metric: str) -> Measured:
    """A metric of the clean benchmark on one OOD set, in per cent: the resampled interval where there is one, else an exact one.

    AUPR depends on how many images of either kind there are, and has no interval here.
    """
    entry, n_id = run.benchmark["sets"][name], (run.evaluation or {}).get("n_id")
    value, interval = entry[metric], entry.get(f"{metric}_interval")
    if interval is None and metric == "fpr95" and entry["n"]:
        interval = share_interval(value, entry["n"])
    if interval is None and metric == "auroc" and entry["n"] and n_id:
        interval = area_interval(value, n_id, entry["n"])
    return _percent(value, interval)


def mean_measured(run: Run, names: Sequence[str], metric: str) -> Measured | None:
    """The mean of a clean metric over the evaluated ones of these sets, in per cent.

    Its interval has the means of the sets' ends: as wide as if all sets erred the same way, which they may, by the ID images.
    """
    return _mean([measured(run, name, metric) for name in names if name in run.benchmark.get("sets", {})])


def accuracy(run: Run) -> Measured | None:
    """Accuracy on ID test images, in per cent."""
    if run.evaluation is None:
        return None
    value, n = run.evaluation["accuracy"], run.evaluation.get("n_id")
    return _percent(value, share_interval(value, n) if n else None)


def guaranteed(run: Run, name: str, metric: str, place: int) -> Measured | None:
    """GAUC, AAUC or AUC of one certified OOD set at the ε of this place, in per cent; None where it is not known."""
    assert run.certification is not None
    entries = run.certification["sets"]
    found = entries[name].get(metric)
    value = found[place] if isinstance(found, list) else found
    inside = sum(entry["n"] for entry in entries.values() if entry["kind"] == "id")
    return None if value is None else _percent(value, area_interval(value, inside, entries[name]["n"]))


def _mean_guaranteed(metric: str) -> Callable[[Run, Sequence[str]], Measured | None]:
    def mean(run: Run, names: Sequence[str]) -> Measured | None:
        if not run.certified:
            return None
        found = [guaranteed(run, name, metric, 0) for name in names if name in certified_sets(run)]
        return _mean([one for one in found if one is not None])

    return mean


def _median_radius(column: str, kind: str) -> Callable[[Run, Sequence[str]], Measured | None]:
    def of(run: Run, names: Sequence[str]) -> Measured | None:
        if not run.certified:
            return None
        values = [getattr(record, column) for record in _images(run, kind, names)]
        known = [value for value in values if not math.isnan(value)]
        return Measured(median(known), median_interval(known)) if known else None

    return of


def _images(run: Run, kind: str, names: Sequence[str]) -> list[Certificate]:
    return [record for record in run.certificates if record.kind == kind and (kind == "id" or record.set in names)]


def _clean(metric: str) -> Callable[[Run, Sequence[str]], Measured | None]:
    return lambda run, names: mean_measured(run, names, metric)


MEASURES = (
    Measure(
        Column("accuracy", "accuracy %", ".1f", lowest=False, alike=("images",)),
        lambda run, _: accuracy(run),
        of_group=False,
    ),
    Measure(Column("fpr95", "FPR95 %", ".1f", lowest=True, alike=MEASURED_ALIKE), _clean("fpr95")),
    Measure(Column("auroc", "AUROC %", ".1f", lowest=False, alike=MEASURED_ALIKE), _clean("auroc")),
    Measure(Column("aupr_in", "AUPR-in %", ".1f", alike=MEASURED_ALIKE), _clean("aupr_in")),
    Measure(Column("aupr_out", "AUPR-out %", ".1f", alike=MEASURED_ALIKE), _clean("aupr_out")),
    Measure(Column("aauc", "AAUC %", ".1f", lowest=False, alike=CERTIFIED_ALIKE), _mean_guaranteed("aauc")),
    Measure(Column("gauc", "GAUC %", ".1f", lowest=False, alike=CERTIFIED_ALIKE), _mean_guaranteed("gauc")),
    Measure(
        Column("radius_id", "ID radius, certified", ".4f", lowest=False, alike=("norm", "certified_images")),
        _median_radius("radius_certified", "id"),
        of_group=False,
    ),
    Measure(
        Column("attack_id", "ID radius, attack", ".4f", alike=("norm", "certified_images")),
        _median_radius("radius_attack", "id"),
        of_group=False,
    ),
    Measure(
        Column("radius_ood", "OOD radius, certified", ".4f", lowest=False, alike=CERTIFIED_ALIKE),
        _median_radius("radius_certified", "ood"),
    ),
    Measure(
        Column("attack_ood", "OOD radius, attack", ".4f", alike=CERTIFIED_ALIKE), _median_radius("radius_attack", "ood")
    ),
)
SUMMARY = (
    Column("group", "OOD sets"),
    Column("run", "run"),
    Column("runs", "seeds", "d"),
    *(measure.column for measure in MEASURES),
    Column("norm", "norm"),
    Column("eps", "ε", "g"),
    Column("n", "n", "d", hint="OOD images measured"),
    Column("n_certified", "n certified", "d", hint="ID and OOD images certified"),
    Column("identity", "identity"),
)


def summary_rows(runs: Sequence[Run], near: Sequence[str] = (), *, apart: bool = False) -> list[Row]:
    """A row for every group of OOD sets and kind of training: means ± standard deviations over the runs of a kind.

    Shares are in per cent, radii medians over images in pixels, GAUC and AAUC at the first ε. The 95 % interval of a cell is
    over images for a single run, and for several the hull of that and of Student's over runs. With `apart` every run has a row
    of its own.
    """
    groups = ood_groups(runs, near)
    kinds = [Kind(run.name, (run,)) for run in runs] if apart else kinds_of_training(runs)
    return [row_of(kind, group, names) for group, names in groups.items() for kind in kinds]


def row_of(kind: Kind, group: str, names: Sequence[str]) -> Row:
    """The row of a kind of training for these OOD sets."""
    run = kind.first
    certification: Mapping[str, Any] = run.certification or {}
    own = [name for name in names if name in {*run.benchmark.get("sets", ()), *certified_sets(run)}]
    row: dict[str, Any] = {
        "group": group,
        "set": ", ".join(own),
        "run": kind.name,
        "runs": len(kind.runs),
        "score": run.score or certification.get("score"),
    }
    for measure in MEASURES:
        row |= _over_runs(measure.column.key, [measure.of(one, own) for one in kind.runs])
    norm = certification.get("norm")
    return row | {
        "norm": NORM_NAMES[norm] if norm else None,
        "eps": certification["eps"][0] if norm else None,
        "n": sum(entry["n"] for name, entry in run.benchmark.get("sets", {}).items() if name in own) or None,
        "n_certified": len(_images(run, "id", own) + _images(run, "ood", own)) or None,
        "identity": _identities(kind),
        "images": _digest(run.benchmark_images),
        "certified_images": certified_images(run),
    }


def identity(run: Run) -> str:
    """The SHA-256 of the detector that a run's numbers are about; empty where they do not say."""
    for content in (run.evaluation, run.certification):
        found = str((content or {}).get("detector", {}).get("sha256", ""))
        if found:
            return found
    return ""


def title_of(group: str, names: Sequence[str]) -> str:
    """What a group of OOD sets is called above its rows."""
    return f"{'' if group == ALL else group.capitalize() + ' '}OOD: {', '.join(names) or 'no sets'}"


def _over_runs(key: str, found: Sequence[Measured | None]) -> dict[str, float | None]:
    """The cell of some runs: the value of one with its interval over images, the mean of several with the hull of both kinds."""
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return with_interval(key, None, None)
    if len(known) == 1:
        return with_interval(key, known[0].value, known[0].interval)
    values = [one.value for one in known]
    mean = fmean(values)
    if not math.isfinite(mean):
        return with_interval(key, mean, None)
    deviation = stdev(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    # Seeds that agree by chance say nothing of other images.
    images = _mean(known)
    over_images = images.interval if images is not None else None
    least, most = max(0.0, mean - half), min(known[0].most, mean + half)
    interval = over_images and (min(least, over_images[0]), max(most, over_images[1]))
    return with_interval(key, mean, interval) | {key + DEVIATION: deviation}


def _identities(kind: Kind) -> str:
    """The first digits of the hash of a detector, and how many more there are."""
    found = [identity(run)[:8] for run in kind.runs]
    if not found[0]:
        return "–"
    return found[0] if len(found) == 1 else f"{found[0]} +{len(found) - 1}"


def _counts(run: Run) -> list[tuple[str, int]]:
    return sorted((name, entry["n"]) for name, entry in (run.certification or {}).get("sets", {}).items())


def certified_images(run: Run) -> str:
    """A digest of the images that a run has certificates of."""
    return _digest([(run.certification or {}).get("image_sets"), _counts(run)])


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:8]


def _mean(found: Sequence[Measured]) -> Measured | None:
    if not found:
        return None
    intervals = [one.interval for one in found if one.interval is not None]
    whole = len(intervals) == len(found)
    interval = (fmean(low for low, _ in intervals), fmean(high for _, high in intervals)) if whole else None
    return Measured(fmean(one.value for one in found), interval, found[0].most)


def _percent(value: float, interval: Sequence[float] | None) -> Measured:
    return Measured(100 * value, None if interval is None else (100 * interval[0], 100 * interval[1]), 100.0)
