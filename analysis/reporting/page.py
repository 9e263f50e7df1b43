"""The page of a report: everything in one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from certood import __version__
from certood.analysis.reporting import provenance
from certood.analysis.reporting.figures import NORM_NAMES
from certood.analysis.reporting.links import image_correlations, run_correlations, run_points
from certood.analysis.reporting.pictures import worst_images
from certood.analysis.reporting.plots import curves, run_scatter, scatters, threat_curves
from certood.analysis.reporting.runs import Run
from certood.analysis.reporting.tables import Column, Row, best_cells, shown, table_columns, tables
from certood.analysis.reporting.verdict import verdict
from certood.files import write_atomically

# With more runs than this, what belongs to single runs is folded away.
OPEN_RUNS = 4
# Columns that are said once under the table where all rows have the same.
COMMON = ("score", "method", "norm", "eps", "n", "sigma", "confidence")


def write_page(runs: Sequence[Run], out: Path) -> None:
    """Render the report of some runs to a file; raises RunDirectoryError where it cannot be written."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("certood.analysis.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    write_atomically(out, environment.get_template("report.html.j2").render(**_content(runs)) + "\n")


def number(value: float | None, form: str = ".3g") -> str:
    """A number in running text; what is not one, or not known, is a dash."""
    if value is None:
        return "–"
    text = f"{value:{form}}"
    return {"nan": "–", "inf": "∞", "-inf": "−∞"}.get(text, text.replace("-", "−"))


def _content(runs: Sequence[Run]) -> Mapping[str, Any]:
    names = [run.name for run in runs]
    title = ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
    certified = [run for run in runs if run.certified]
    return {
        "title": f"Certified OOD detection: {title}",
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "runs": runs,
        "open": len(runs) <= OPEN_RUNS,
        "norms": NORM_NAMES,
        "verdict": verdict(runs),
        "tables": {name: _table(table_columns()[name], rows) for name, rows in tables(runs).items()},
        "several_threats": len({(run.norm, tuple(run.certification["eps"])) for run in certified if run.certification})
        > 1,
        "certified": certified,
        "claims": _claims(certified),
        "smoothed": [run for run in runs if run.smoothed],
        "violations": {
            run.name: int(run.certification["violations"])
            for run in certified
            if run.certification and run.certification["violations"]
        },
        "threat_curves": threat_curves(runs),
        "curves": curves(runs),
        "links": [(run, image_correlations(run), scatters(run)) for run in certified],
        "over_runs": [
            (NORM_NAMES[norm], correlation, points, run_scatter(points))
            for norm, correlation, points in run_correlations(run_points(runs))
        ],
        "worst": [(run, worst_images(run)) for run in runs if run.certificates],
        "sources": [
            (run, provenance.facts(run), provenance.hashes(run), provenance.commands(run), provenance.recipe_text(run))
            for run in runs
        ],
    }


def _claims(certified: Sequence[Run]) -> list[tuple[Mapping[str, Any], list[tuple[str, float]]]]:
    """Runs that claim the same of different detectors: what is claimed, and (name, γ) of each."""
    groups: dict[str, tuple[Mapping[str, Any], list[tuple[str, float]]]] = {}
    for run in certified:
        assert run.certification is not None
        claim = {key: run.certification.get(key) for key in ("norm", "score", "method", "dtype", "eps")}
        groups.setdefault(repr(claim), (claim, []))[1].append((run.name, run.certification["threshold"]))
    return list(groups.values())


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Mapping[str, Any]:
    """The columns of a table that differ between rows, and what all rows have in common."""
    common = [
        (column, column.cell(rows[0]))
        for column in columns
        if column.key in COMMON and len(rows) > 1 and len({row[column.key] for row in rows}) == 1
    ]
    kept = [column for column in shown(columns, rows) if column not in [one for one, _ in common]]
    return {"columns": kept, "rows": rows, "best": best_cells(rows, columns), "common": common}
