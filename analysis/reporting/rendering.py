"""How a page is made of a template and tables; without matplotlib, so that what draws nothing starts at once."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jinja2

from certood import __version__
from certood.analysis.reporting.columns import NORM_NAMES, Column, Row, best_cells
from certood.analysis.reporting.formats import OVER_SETS
from certood.analysis.reporting.summary import title_of

# Columns that are said once under the table where all rows have the same.
COMMON = ("score", "method", "norm", "eps", "n", "n_certified", "sigma", "confidence", "runs")


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
