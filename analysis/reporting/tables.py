"""The two tables of a report: the benchmark and the theory of the same runs; and their other formats."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from certood.analysis.reporting.runs import Run

Row = Mapping[str, str | float | None]

BENCHMARK_HEADS = {
    "run": "run",
    "score": "score",
    "set": "OOD set",
    "accuracy": "accuracy %",
    "fpr95": "FPR95 %",
    "auroc": "AUROC %",
}
THEORY_HEADS = {
    "run": "run",
    "set": "set",
    "kind": "kind",
    "n": "images",
    "gradient_norm": "gradient norm (estimate)",
    "lipschitz_sampled": "L sampled (estimate)",
    "lipschitz_certified": "L certified",
    "global_lipschitz": "L global",
    "radius_certified": "radius certified",
    "radius_attack": "radius attack",
    "certified": "certified %",
    "refuted": "refuted %",
    "auc": "AUC %",
    "aauc": "AAUC %",
    "gauc": "GAUC %",
}


def benchmark_rows(runs: Sequence[Run]) -> list[Row]:
    """A row an OOD set and run, and one for the mean over the sets: clean FPR95 and AUROC in per cent."""
    rows: list[Row] = []
    for run in runs:
        if run.evaluation is None:
            continue
        sets = dict(run.benchmark.get("sets", {}))
        if "mean" in run.benchmark:
            sets["mean"] = run.benchmark["mean"]
        for name, entry in sets.items():
            rows.append(
                {
                    "run": run.name,
                    "score": run.evaluation.get("score"),
                    "set": name,
                    "accuracy": 100 * run.evaluation["accuracy"],
                    "fpr95": 100 * entry["fpr95"],
                    "auroc": 100 * entry["auroc"],
                }
            )
    return rows


def theory_rows(runs: Sequence[Run]) -> list[Row]:
    """A row a set and run: medians over images at the first ε of the run; per cent where it says so."""
    rows: list[Row] = []
    for run in runs:
        if run.certification is None or run.smoothed:
            continue
        for name, entry in run.certification["sets"].items():
            rows.append(
                {
                    "run": run.name,
                    "set": name,
                    "kind": entry["kind"],
                    "n": entry["n"],
                    "gradient_norm": entry["median_gradient_norm"],
                    "lipschitz_sampled": entry["median_lipschitz_sampled"],
                    "lipschitz_certified": entry["median_lipschitz_certified"][0],
                    "global_lipschitz": run.certification["global_lipschitz"],
                    "radius_certified": entry["median_radius_certified"],
                    "radius_attack": entry["median_radius_attack"],
                    "certified": 100 * entry["certified_fraction"][0],
                    "refuted": 100 * entry["refuted_fraction"][0],
                    "auc": _percent(entry.get("auc")),
                    "aauc": _percent(entry.get("aauc", [None])[0]),
                    "gauc": _percent(entry.get("gauc", [None])[0]),
                }
            )
    return rows


def shown(value: str | float | None) -> str:
    """A cell as people read it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4g}"


def best_cells(rows: Sequence[Row], column: str, *, lowest: bool, within: Sequence[str] = ("set",)) -> set[int]:
    """Indices of the rows that are best in a column among rows of the same set."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(rows):
        if isinstance(row.get(column), (int, float)):
            groups.setdefault(tuple(row[key] for key in within), []).append(index)
    best: set[int] = set()
    for members in groups.values():
        values = [float(rows[index][column] or 0) for index in members]
        target = min(values) if lowest else max(values)
        if len(members) > 1:
            best |= {index for index, value in zip(members, values, strict=True) if np.isclose(value, target)}
    return best


def tables_as_json(runs: Sequence[Run]) -> str:
    """Both tables, as JSON."""
    return json.dumps({"benchmark": benchmark_rows(runs), "theory": theory_rows(runs)}, indent=2) + "\n"


def tables_as_csv(runs: Sequence[Run]) -> str:
    """Both tables, one after the other with an empty line between, as CSV."""
    text = io.StringIO()
    for rows, heads in ((benchmark_rows(runs), BENCHMARK_HEADS), (theory_rows(runs), THEORY_HEADS)):
        writer = csv.DictWriter(text, list(heads), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text.write("\n")
    return text.getvalue()


def tables_as_latex(runs: Sequence[Run]) -> str:
    """Both tables as LaTeX tabulars (booktabs)."""
    parts = []
    for rows, heads in ((benchmark_rows(runs), BENCHMARK_HEADS), (theory_rows(runs), THEORY_HEADS)):
        lines = [
            f"\\begin{{tabular}}{{{'l' * 3}{'r' * (len(heads) - 3)}}}",
            "\\toprule",
            " & ".join(_escaped(head) for head in heads.values()) + " \\\\",
            "\\midrule",
            *(" & ".join(_escaped(shown(row[key])) for key in heads) + " \\\\" for row in rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("–", "--")


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
