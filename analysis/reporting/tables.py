"""The tables of a report: the benchmark, the theory, and the theory over all radii."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from certood.analysis.evidence.quantities import Quantity
from certood.analysis.evidence.registry import quantities
from certood.analysis.reporting.figures import NORM_NAMES
from certood.analysis.reporting.runs import Run
from certood.analysis.summary import median_name

Row = Mapping[str, str | float | None]


@dataclass(frozen=True)
class Column:
    """A column of a table: its key in a row, what people read above it, the format of its numbers.

    `lowest` says which number is best: the lowest, the highest, or none (None). A column of text has no format. One that is
    `optional` is not shown where no row knows it.
    """

    key: str
    head: str
    format: str = ""
    lowest: bool | None = None
    optional: bool = False

    @property
    def text(self) -> bool:
        """Whether the cells are text."""
        return not self.format

    def cell(self, row: Row) -> str:
        """The cell as people read it; what is not known, or not a number, is a dash."""
        value = row[self.key]
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "–"
        if isinstance(value, str) or not self.format:
            return str(value)
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        # Four significant digits would turn a large constant into a power of ten.
        text = f"{value:.0f}" if self.format == ".4g" and abs(value) >= 1000 else f"{value:{self.format}}"
        return text.replace("-", "−")


BENCHMARK = (
    Column("set", "OOD set"),
    Column("run", "run"),
    Column("score", "score"),
    Column("accuracy", "accuracy %", ".1f"),
    Column("fpr95", "FPR95 %", ".1f", lowest=True),
    Column("fpr95_low", "95 % from", ".1f", optional=True),
    Column("fpr95_high", "95 % to", ".1f", optional=True),
    Column("auroc", "AUROC %", ".1f", lowest=False),
    Column("auroc_low", "95 % from", ".1f", optional=True),
    Column("auroc_high", "95 % to", ".1f", optional=True),
)
OVERVIEW = (
    Column("run", "run"),
    Column("accuracy", "accuracy %", ".1f", lowest=False),
    Column("fpr95", "FPR95 %", ".1f", lowest=True),
    Column("auroc", "AUROC %", ".1f", lowest=False),
    Column("radius_id", "radius of ID, certified", ".4f", lowest=False),
    Column("radius_ood", "radius of OOD, certified", ".4f", lowest=False),
    Column("gauc", "GAUC %", ".1f", lowest=False),
    Column("norm", "norm"),
    Column("eps", "ε", "g"),
    Column("n", "images", "d"),
)
_THREAT = (Column("norm", "norm"), Column("eps", "ε", "g"), Column("n", "images", "d"))
_WHOSE = (Column("set", "set"), Column("kind", "kind"), Column("run", "run"))
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
    "overview": "Benchmark and certified radii by run, mean over OOD sets and at the first ε",
    "benchmark": "Clean benchmark",
    "theory": "Theory, at the first ε of each run",
    "radii": "Theory over all radii",
    "smoothing": "Smoothing (probabilistic)",
}


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
        "overview": OVERVIEW,
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


def tables(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """The rows of every table by its name, all runs of a set next to each other."""
    return {
        "overview": overview_rows(runs),
        "benchmark": benchmark_rows(runs),
        "theory": theory_rows(runs),
        "radii": radius_rows(runs),
        "smoothing": smoothing_rows(runs),
    }


def overview_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per run that is evaluated and certified: accuracy, mean FPR95 and AUROC, median certified radii of all ID and of
    all OOD images, and GAUC at the first ε, mean over the OOD sets; in per cent and pixels.

    Runs compare where their sets are the same, which is what "set" says here.
    """
    rows: list[Row] = []
    for run in runs:
        if run.evaluation is None or run.certification is None or run.smoothed:
            continue
        radii = {
            kind: [record.radius_certified for record in run.certificates if record.kind == kind]
            for kind in ("id", "ood")
        }
        entries = run.certification["sets"]
        guaranteed = [entry["gauc"][0] for entry in entries.values() if "gauc" in entry]
        mean = run.benchmark.get("mean", {})
        rows.append(
            {
                "run": run.name,
                "set": ", ".join(sorted({*entries, *run.benchmark["sets"]})),
                "accuracy": _percent(run.evaluation["accuracy"]),
                "fpr95": _percent(mean.get("fpr95")),
                "auroc": _percent(mean.get("auroc")),
                **{f"radius_{kind}": median(values) if values else None for kind, values in radii.items()},
                "gauc": _percent(fmean(guaranteed)) if guaranteed else None,
                "norm": NORM_NAMES[run.certification["norm"]],
                "eps": run.certification["eps"][0],
                "n": len(run.certificates),
            }
        )
    return rows


def benchmark_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per OOD set and run, and one for the mean over a run's sets: clean FPR95 and AUROC in per cent.

    With the ends of their bootstrap intervals where `evaluate --bootstrap` computed them.
    """
    rows: list[Row] = []
    for run in runs:
        if run.evaluation is None:
            continue
        sets = dict(run.benchmark.get("sets", {}))
        if "mean" in run.benchmark:
            sets["mean"] = run.benchmark["mean"]
        rows += [
            {
                "run": run.name,
                "score": run.score,
                "set": name,
                "accuracy": _percent(run.evaluation["accuracy"]),
                **_measured(entry, "fpr95"),
                **_measured(entry, "auroc"),
            }
            for name, entry in sets.items()
        ]
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
            **_medians(entry, _shown_quantities(), 0),
            "certified": _percent(_at(entry, "certified_fraction", 0)),
            "refuted": _percent(_at(entry, "refuted_fraction", 0)),
            "auc": _percent(entry.get("auc")),
            "aauc": _percent(_at(entry, "aauc", 0)),
            "gauc": _percent(_at(entry, "gauc", 0)),
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
            **_medians(entry, _shown_quantities(per_eps=True), place),
            "certified": _percent(_at(entry, "certified_fraction", place)),
            "refuted": _percent(_at(entry, "refuted_fraction", place)),
            **{name: _percent(_at(entry, name, place)) for name in ("aauc", "gauc", "afpr95", "gfpr95")},
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
            "smoothed": _percent(_at(entry, "smoothed_fraction", place)),
            **_medians(entry, _shown_quantities(smoothed=True), place),
        }
        for run in runs
        if run.certification is not None and run.smoothed
        for name, entry in run.certification["sets"].items()
        for place in range(len(run.certification["eps"]))
    )


def shown(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns without optional ones that no row knows."""
    return [column for column in columns if not column.optional or any(row[column.key] is not None for row in rows)]


def best_cells(rows: Sequence[Row], columns: Sequence[Column]) -> set[tuple[int, str]]:
    """(row, column) of the cells that are best, as they read, among runs with the same set, norm and ε.

    None where fewer than two runs compete, or all read the same.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(tuple(row.get(key) for key in ("set", "norm", "eps", "sigma")), []).append(index)
    best: set[tuple[int, str]] = set()
    for column in columns:
        for members in groups.values():
            values = {
                index: float(value)
                for index in members
                if isinstance(value := rows[index][column.key], (int, float)) and not math.isnan(value)
            }
            if column.lowest is None or len(values) < 2:
                continue
            target = min(values, key=lambda index: values[index] if column.lowest else -values[index])
            found = [index for index in values if column.cell(rows[index]) == column.cell(rows[target])]
            if len(found) < len(values):
                best |= {(index, column.key) for index in found}
    return best


def _threat(run: Run, entry: Mapping[str, Any], place: int) -> dict[str, Any]:
    assert run.certification is not None
    return {
        "norm": NORM_NAMES[run.certification["norm"]],
        "eps": run.certification["eps"][place],
        "n": entry["n"],
    }


def _measured(entry: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    """A metric of a set and, where it was resampled, the ends of its interval, in per cent."""
    low, high = entry.get(f"{metric}_interval", (None, None))
    return {metric: _percent(entry[metric]), f"{metric}_low": _percent(low), f"{metric}_high": _percent(high)}


def _by_set(rows: Iterable[Row]) -> list[Row]:
    """Rows of a set next to each other, sets in the order of their first appearance, the mean last."""
    given = list(rows)
    order = list(dict.fromkeys(row["set"] for row in given if row["set"] != "mean"))
    return sorted(given, key=lambda row: order.index(row["set"]) if row["set"] in order else len(order))


def _at(entry: Mapping[str, Any], key: str, place: int) -> float | None:
    values = entry.get(key)
    return None if values is None else values[place]


def _medians(entry: Mapping[str, Any], chosen: Sequence[Quantity], place: int) -> dict[str, float | None]:
    """The medians of a set by column, those at the ε of this place; None where the certification has none."""
    found = {}
    for quantity in chosen:
        value = entry.get(median_name(quantity))
        found[quantity.title] = value[place] if isinstance(value, list) else value
    return found


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
