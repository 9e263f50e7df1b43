"""The page of a report: everything in one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from certood import __version__
from certood.analysis.reporting import provenance
from certood.analysis.reporting.columns import Column, Row, best_cells
from certood.analysis.reporting.curves import fractions, roc_curves, threat_curves, training_curves
from certood.analysis.reporting.figures import NORM_NAMES
from certood.analysis.reporting.formats import OVER_SETS
from certood.analysis.reporting.histograms import score_histograms
from certood.analysis.reporting.kinds import kinds_of_training, ood_groups
from certood.analysis.reporting.links import image_correlations, run_correlations, run_points
from certood.analysis.reporting.pictures import worst_images
from certood.analysis.reporting.runs import Run
from certood.analysis.reporting.scatters import run_scatter, scatters
from certood.analysis.reporting.summary import title_of
from certood.analysis.reporting.tables import table_columns, tables
from certood.analysis.reporting.verdict import verdict
from certood.files import write_atomically

# Columns that are said once under the table where all rows have the same.
COMMON = ("score", "method", "norm", "eps", "n", "n_certified", "sigma", "confidence", "runs")


def write_page(runs: Sequence[Run], out: Path, near: Sequence[str] = ()) -> None:
    """Render the report of some runs to a file; raises RunDirectoryError where it cannot be written.

    `near` are the OOD sets that are near the ID set; raises CertoodError for one that no run has.
    """
    write_atomically(out, rendered("report.html.j2", _content(runs, near)))


def rendered(template: str, content: Mapping[str, Any]) -> str:
    """A page of this package: a template with its style and script, everything in one file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("certood.analysis.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    common = {"made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "version": __version__, "norms": NORM_NAMES}
    return environment.get_template(template).render(**common, **content) + "\n"


def is_page(content: bytes) -> bool:
    """Whether a file is a page that certood wrote."""
    return b'<meta name="generator" content="certood' in content[:2000]


def number(value: float | None, form: str = ".3g") -> str:
    """A number in running text; what is not one, or not known, is a dash."""
    if value is None:
        return "–"
    text = f"{value:{form}}"
    return {"nan": "–", "inf": "∞", "-inf": "−∞"}.get(text, text.replace("-", "−"))


def _content(runs: Sequence[Run], near: Sequence[str]) -> Mapping[str, Any]:
    names = [kind.name for kind in kinds_of_training(runs)]
    title = ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
    certified = [run for run in runs if run.certified]
    groups = ood_groups(runs, near)
    rows = tables(runs, near)
    return {
        "title": title,
        "runs": runs,
        "verdict": verdict(runs),
        "tables": {name: table(table_columns()[name], rows[name]) for name in rows},
        "parts": sections(rows, groups),
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
        "threat_curves": threat_curves(runs, groups),
        "fractions": fractions(runs, groups),
        "histograms": score_histograms(runs, groups),
        "roc": roc_curves(runs, groups),
        "training": training_curves(runs),
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


def sections(
    rows: Mapping[str, Sequence[Row]], groups: Mapping[str, Sequence[str]]
) -> Mapping[str, Sequence[tuple[str, int, int]]]:
    """The parts of the tables whose rows are about groups of OOD sets: title, first row and the row after the last."""
    found = {}
    for name in OVER_SETS:
        own_rows = rows.get(name, ())
        places = [(group, [index for index, row in enumerate(own_rows) if row["group"] == group]) for group in groups]
        found[name] = [(title_of(group, groups[group]), own[0], own[-1] + 1) for group, own in places if own]
    return found


def table(columns: Sequence[Column], rows: Sequence[Row]) -> Mapping[str, Any]:
    """The columns of a table that differ between rows and that some row knows, and what all rows have in common."""
    common = [
        (column, column.cell(rows[0]))
        for column in columns
        if column.key in COMMON and len(rows) > 1 and len({row[column.key] for row in rows}) == 1
    ]
    said = {column.key for column, _ in common} | {"group"}
    kept = [
        column for column in columns if column.key not in said and any(row.get(column.key) is not None for row in rows)
    ]
    told = [(column, cell) for column, cell in common if cell != "–" and (column.key, cell) != ("runs", "1")]
    return {"columns": kept, "rows": rows, "best": best_cells(rows, columns), "common": told}
