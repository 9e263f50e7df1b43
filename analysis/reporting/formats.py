"""The tables of a report in formats for other programs: JSON, CSV and LaTeX."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from certood.analysis.reporting.runs import Run
from certood.analysis.reporting.tables import TITLES, best_cells, shown, table_columns, tables


def tables_as_json(runs: Sequence[Run]) -> str:
    """All tables, as JSON; what is infinite or not a number is null."""
    content = {
        name: [{key: _plain(value) for key, value in row.items()} for row in rows]
        for name, rows in tables(runs).items()
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def tables_as_csv(runs: Sequence[Run]) -> str:
    """Benchmark and theory joined in one CSV: one row per run, set and ε; cells that are not known are empty."""
    found = tables(runs)
    # The overview says nothing of single sets.
    parts = [part for name, part in table_columns().items() if name != "overview"]
    columns = list(dict.fromkeys(["run", *(column.key for part in parts for column in part)]))
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name in ("theory", "radii", "smoothing"):
        for row in found[name]:
            rows.setdefault((row["run"], row["set"], row["norm"], row["eps"]), {}).update(row)
    for row in found["benchmark"]:
        matching = [own for key, own in rows.items() if key[:2] == (row["run"], row["set"])]
        for own in matching or [rows.setdefault((row["run"], row["set"], None, None), {})]:
            own.update(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    order = [run.name for run in runs]
    for row in sorted(rows.values(), key=lambda row: order.index(row["run"])):
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return text.getvalue()


def tables_as_latex(runs: Sequence[Run]) -> str:
    """Every table that has rows as a LaTeX tabular (packages booktabs, amsmath), the best in bold."""
    parts = []
    for name, rows in tables(runs).items():
        if not rows:
            continue
        columns = shown(table_columns()[name], rows)
        best = best_cells(rows, columns)
        lines = [
            f"% {escape_latex(TITLES[name])}",
            f"\\begin{{tabular}}{{{''.join('l' if column.text else 'r' for column in columns)}}}",
            "\\toprule",
            " & ".join(escape_latex(column.head) for column in columns) + " \\\\",
            "\\midrule",
        ]
        for index, row in enumerate(rows):
            cells = [escape_latex(column.cell(row)) for column in columns]
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


def _plain(value: str | float | None) -> str | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
