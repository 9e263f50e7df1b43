"""The tables of a report: the summary, the benchmark, the theory, and the theory over all radii."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from certood.analysis.evidence.quantities import Quantity
from certood.analysis.evidence.registry import quantities
from certood.analysis.intervals import median_interval, share_interval
from certood.analysis.reporting.columns import NORM_NAMES, Column, Row, with_interval
from certood.analysis.reporting.runs import Run
from certood.analysis.reporting.summary import (
    SUMMARY,
    Measured,
    accuracy,
    certified_images,
    guaranteed,
    mean_measured,
    summary_rows,
)
from certood.analysis.summary import median_name, median_samples
from certood.evaluation import METRICS

BENCHMARK = (
    Column("set", "OOD set"),
    Column("run", "run"),
    Column("score", "score"),
    Column("accuracy", "accuracy %", ".1f"),
    Column("fpr95", "FPR95 %", ".1f", lowest=True),
    Column("auroc", "AUROC %", ".1f", lowest=False),
    Column("aupr_in", "AUPR-in %", ".1f"),
    Column("aupr_out", "AUPR-out %", ".1f"),
    Column("n", "n", "d", hint="OOD images measured"),
)
_THREAT = (Column("norm", "norm"), Column("eps", "ε", "g"), Column("n", "n", "d", hint="images certified"))
_WHOSE = (Column("set", "set"), Column("kind", "kind"), Column("run", "run"), Column("certified_score", "score"))
_SHARES = (Column("certified", "certified %", ".1f", lowest=False), Column("refuted", "refuted %", ".1f"))
_METRICS = (
    Column("auc", "AUC %", ".1f"),
    Column("aauc", "AAUC %", ".1f"),
    Column("gauc", "GAUC %", ".1f", lowest=False),
)
_RATES = (Column("afpr95", "AFPR95 %", ".1f"), Column("gfpr95", "GFPR95 %", ".1f", lowest=True))
# What is in the table first.
SUBJECTS = ("lipschitz", "radius", "score")
TITLES = {
    "summary": "Summary: means over OOD sets and, of several seeds, ± their standard deviation; certified numbers at the first ε",
    "runs": "The same of every single run",
    "benchmark": "Clean benchmark",
    "theory": "Theory, at the first ε of each run",
    "radii": "Theory over all radii",
    "smoothing": "Smoothing (probabilistic)",
}


# Columns of shares that certification.json has by another name.
SHARES = {"certified": "certified_fraction", "refuted": "refuted_fraction", "smoothed": "smoothed_fraction"}


def _of_quantities(chosen: Sequence[Quantity]) -> tuple[Column, ...]:
    """The columns of quantities: medians over the images of a set."""
    return tuple(Column(quantity.title, quantity.head, quantity.format, quantity.lowest) for quantity in chosen)


def _shown_quantities(*, smoothed: bool = False, per_eps: bool = False) -> list[Quantity]:
    """The quantities that have a column, lower bounds before upper ones; with `per_eps` those with a value for every ε."""
    chosen = [one for one in quantities(smoothed=smoothed) if one.head and (one.per_eps or not per_eps)]
    return sorted(chosen, key=lambda one: (SUBJECTS.index(one.of), one.side == "upper"))


def table_columns() -> dict[str, tuple[Column, ...]]:
    """The columns of every table by its name."""
    return {
        "summary": SUMMARY,
        "runs": SUMMARY,
        "benchmark": BENCHMARK,
        "theory": (
            *_WHOSE,
            Column("method", "method"),
            *_THREAT,
            *_of_quantities(_shown_quantities()),
            *_SHARES,
            *_METRICS,
        ),
        "radii": (
            *_WHOSE,
            *_THREAT,
            *_of_quantities(_shown_quantities(per_eps=True)),
            *_SHARES,
            *_METRICS[1:],
            *_RATES,
        ),
        "smoothing": (
            *_WHOSE,
            *_THREAT,
            Column("sigma", "σ", "g"),
            Column("confidence", "confidence", "g"),
            Column("smoothed", "smoothed %", ".1f", lowest=False),
            *_of_quantities(_shown_quantities(smoothed=True)),
        ),
    }


def tables(runs: Sequence[Run], near: Sequence[str] = ()) -> dict[str, list[Row]]:
    """The rows of every table by its name, all runs of a set next to each other; `runs` only where seeds were put together."""
    summary = summary_rows(runs, near)
    return {
        "summary": summary,
        "runs": summary_rows(runs, near, apart=True) if any(row["runs"] > 1 for row in summary) else [],
        "benchmark": benchmark_rows(runs),
        "theory": theory_rows(runs),
        "radii": radius_rows(runs),
        "smoothing": smoothing_rows(runs),
    }


def benchmark_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per OOD set and run, and one for the mean over a run's sets: the clean benchmark in per cent, with intervals.

    Means over different sets are rows of different names.
    """
    rows: list[Row] = []
    evaluated = [run for run in runs if run.evaluation is not None]
    alike = len({frozenset(run.benchmark.get("sets", {})) for run in evaluated}) == 1
    for run in evaluated:
        sets = run.benchmark.get("sets", {})
        groups = {name: (name,) for name in sets}
        if "mean" in run.benchmark:
            groups["mean" if alike else f"mean of {', '.join(sorted(sets))}"] = tuple(sets)
        correct = accuracy(run)
        for name, members in groups.items():
            row: dict[str, Any] = {"run": run.name, "score": run.score, "set": name}
            row |= _cell("accuracy", correct)
            for metric in METRICS:
                row |= _cell(metric, mean_measured(run, members, metric))
            rows.append(row | {"n": sum(sets[one]["n"] for one in members)})
    return _by_set(rows)


def theory_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per set and run: medians over images; what belongs to a ball, at the first ε; some in per cent."""
    return _by_set(
        {
            "run": run.name,
            "set": name,
            "kind": entry["kind"],
            "method": run.certification["method"],
            **_threat(run, entry, 0),
            **_medians(run, name, _shown_quantities(), 0),
            **_share("certified", entry, 0),
            **_share("refuted", entry, 0),
            **_area("auc", run, name, 0),
            **_area("aauc", run, name, 0),
            **_area("gauc", run, name, 0),
        }
        for run in runs
        if run.certification is not None and not run.smoothed
        for name, entry in run.certification["sets"].items()
    )


def radius_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per set, ε and run: what depends on the radius, fractions and metrics in per cent."""
    rows: list[Row] = [
        {
            "run": run.name,
            "set": name,
            "kind": entry["kind"],
            **_threat(run, entry, place),
            **_medians(run, name, _shown_quantities(per_eps=True), place),
            **_share("certified", entry, place),
            **_share("refuted", entry, place),
            **_area("aauc", run, name, place),
            **_area("gauc", run, name, place),
            **_share("afpr95", entry, place),
            **_share("gfpr95", entry, place),
        }
        for run in runs
        if run.certification is not None and not run.smoothed
        for name, entry in run.certification["sets"].items()
        for place in range(len(run.certification["eps"]))
    ]
    return _by_set(sorted(rows, key=lambda row: float(row["eps"] or 0)))


def smoothing_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per set, ε and smoothed run: probabilistic certificates, fractions in per cent."""
    return _by_set(
        {
            "run": run.name,
            "set": name,
            "kind": entry["kind"],
            **_threat(run, entry, place),
            "sigma": run.certification["settings"]["smoothing"]["sigma"],
            "confidence": run.certification["settings"]["smoothing"]["confidence"],
            **_share("smoothed", entry, place),
            **_medians(run, name, _shown_quantities(smoothed=True), place),
        }
        for run in runs
        if run.certification is not None and run.smoothed
        for name, entry in run.certification["sets"].items()
        for place in range(len(run.certification["eps"]))
    )


def _threat(run: Run, entry: Mapping[str, Any], place: int) -> dict[str, Any]:
    assert run.certification is not None
    return {
        "norm": NORM_NAMES[run.certification["norm"]],
        "eps": run.certification["eps"][place],
        "certified_score": run.certification.get("score"),
        "certified_images": certified_images(run),
        "n": entry["n"],
    }


def _by_set(rows: Iterable[Row]) -> list[Row]:
    """Rows of a set next to each other, sets in the order of their first appearance, means last."""
    given = list(rows)
    names = dict.fromkeys(row["set"] for row in given)
    order = sorted(names, key=lambda name: name.split(" ")[0] == "mean")
    return sorted(given, key=lambda row: order.index(row["set"]))


def _cell(key: str, found: Measured | None) -> dict[str, float | None]:
    return with_interval(key, None, None) if found is None else with_interval(key, found.value, found.interval)


def _share(key: str, entry: Mapping[str, Any], place: int) -> dict[str, float | None]:
    """A share of the images of a set at the ε of this place, in per cent, with its exact interval."""
    values = entry.get(SHARES.get(key, key))
    if values is None or values[place] is None:
        return with_interval(key, None, None)
    low, high = share_interval(values[place], entry["n"])
    return with_interval(key, 100 * values[place], (100 * low, 100 * high))


def _area(key: str, run: Run, name: str, place: int) -> dict[str, float | None]:
    return _cell(key, guaranteed(run, name, key, place))


def _medians(run: Run, name: str, chosen: Sequence[Quantity], place: int) -> dict[str, float | None]:
    """The medians of a set by column, those at the ε of this place, with their intervals; None where there is none."""
    assert run.certification is not None
    entry = run.certification["sets"][name]
    samples = median_samples([record for record in run.certificates if record.set == name], smoothed=run.smoothed)
    found: dict[str, float | None] = {}
    for quantity in chosen:
        value = entry.get(median_name(quantity))
        sample = samples.get(median_name(quantity), [[]])
        known = sample[place if len(sample) > 1 else 0]
        value = value[place] if isinstance(value, list) else value
        found |= with_interval(quantity.title, value, median_interval(known) if known else None)
    return found
