"""The tables of a report in formats for other programs: JSON, CSV and LaTeX."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from certood.analysis.reporting.columns import HIGH, LOW, Column, Row, best_cells
from certood.analysis.reporting.runs import Run
from certood.analysis.reporting.tables import TITLES, table_columns, tables
from certood.runs.schema import SCHEMA_VERSION

# Tables that say nothing of single sets.
OVER_SETS = ("summary", "runs")
# What JSON has beside the tables.
LEFT_OUT = "left_out"


def tables_as_json(runs: Sequence[Run], near: Sequence[str] = ()) -> str:
    """All tables, as JSON, and what of which run is not in them; what is infinite or not a number is null."""
    rows_of = tables(runs, near) | {LEFT_OUT: [{"run": run.name, "why": why} for run in runs for why in run.left_out]}
    content = {"schema_version": SCHEMA_VERSION} | {
        name: [{key: _plain(value) for key, value in row.items()} for row in rows] for name, rows in rows_of.items()
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def tables_as_csv(runs: Sequence[Run], near: Sequence[str] = ()) -> str:
    """Benchmark and theory joined in one CSV: one row per run, set and ε; cells that are not known are empty.

    The ends of 95 % intervals are columns of their own, NAME_low and NAME_high.
    """
    found = {name: rows for name, rows in tables(runs, near).items() if name not in OVER_SETS}
    columns = ["run"]
    for name, of_table in found.items():
        known = {key for row in of_table for key, value in row.items() if value is not None}
        for column in table_columns()[name]:
            columns += [column.key, *(column.key + end for end in (LOW, HIGH) if column.key + end in known)]
    columns = list(dict.fromkeys(columns))
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name in ("theory", "radii", "smoothing"):
        for row in found[name]:
            rows.setdefault((row["run"], row["set"], row["norm"], row["eps"]), {}).update(row)
    for row in found["benchmark"]:
        matching = [own for key, own in rows.items() if key[:2] == (row["run"], row["set"])]
        for own in matching or [rows.setdefault((row["run"], row["set"], None, None), {})]:
            own.update(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    order = [run.name for run in runs]
    for row in sorted(rows.values(), key=lambda row: order.index(row["run"])):
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return text.getvalue()


def tables_as_latex(runs: Sequence[Run], near: Sequence[str] = ()) -> str:
    """Every table that has rows as a LaTeX tabular (packages booktabs, amsmath), the best in bold.

    In that of the clean benchmark the 95 % interval of a number stands behind it. What of a run is not shown is a comment.
    """
    left_out = [f"% {escape_latex(run.name)}: {escape_latex(why)}" for run in runs for why in run.left_out]
    parts = ["\n".join(left_out)] if left_out else []
    for name, rows in tables(runs, near).items():
        if not rows:
            continue
        columns = table_columns()[name]
        best = best_cells(rows, columns)
        lines = [
            f"% {escape_latex(TITLES[name])}",
            f"\\begin{{tabular}}{{{''.join('l' if column.text else 'r' for column in columns)}}}",
            "\\toprule",
            " & ".join(escape_latex(column.head) for column in columns) + " \\\\",
            "\\midrule",
        ]
        for index, row in enumerate(rows):
            cells = [escape_latex(_cell(column, row, interval=name == "benchmark")) for column in columns]
            cells = [
                f"\\textbf{{{cell}}}" if (index, column.key) in best else cell
                for cell, column in zip(cells, columns, strict=True)
            ]
            if index and row["set"] != rows[index - 1]["set"]:
                lines.append("\\addlinespace")
            lines.append(" & ".join(cells) + " \\\\")
        parts.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "ε": r"$\varepsilon$",
    "γ": r"$\gamma$",
    "σ": r"$\sigma$",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "∇": r"$\nabla$",
    "∞": r"$\infty$",
    "−": "$-$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "–": "--",
    "…": r"\dots{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escape_latex(text: str) -> str:
    """Text as LaTeX that needs no other package: special characters escaped, the field's Greek letters as mathematics."""
    return "".join(LATEX.get(character, character) for character in text)


def _cell(column: Column, row: Row, *, interval: bool) -> str:
    ends = column.interval_text(row) if interval else ""
    return f"{column.cell(row)} ({ends})" if ends else column.cell(row)


def _plain(value: str | float | None) -> str | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
