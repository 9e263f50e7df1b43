"""The page of a comparison: a sortable row for every kind of training, with where it comes from and a link to its reports."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from certood.analysis.reporting.columns import Column, Row
from certood.analysis.reporting.comparison import COMPARED, Comparison
from certood.analysis.reporting.kinds import NEAR, Kind, kinds_of_training, ood_groups
from certood.analysis.reporting.rendering import rendered, sections, table
from certood.analysis.reporting.runs import Run
from certood.analysis.reporting.summary import SUMMARY, row_of
from certood.files import write_atomically
from certood.runs import RunDirectory

ORIGIN = (
    Column("recipe", "recipe"),
    Column("network", "network"),
    Column("data", "data"),
    Column("score", "score"),
    Column("reports", "reports", hint="report.html of every seed"),
)
# The run first, what was measured, and at the end where it comes from.
COLUMNS = (*SUMMARY, *ORIGIN)
DIFFERENCES = (
    Column("metric", "metric"),
    Column("sets", "OOD sets"),
    Column("arm", "run"),
    Column("value", "mean %", ".1f", hint="mean and standard deviation over seeds"),
    Column(
        "difference", "difference", "+.1f", hint="in points, with the 95 % interval of Student's paired t over seeds"
    ),
    Column("pairs", "pairs", "d", hint="seeds that both have"),
)


def write_leaderboard(comparison: Comparison, out: Path) -> None:
    """Write the page of a comparison; raises RunDirectoryError where it cannot be written."""
    runs = [arm.runs[seed] for arm in comparison.arms for seed in arm.seeds]
    groups = ood_groups(runs, comparison.groups.get(NEAR, ()))
    rows = [
        _row(kind, group, names, out.resolve().parent)
        for group, names in groups.items()
        for kind in kinds_of_training(runs)
    ]
    differences = _differences(comparison)
    content = {
        "runs": runs,
        "leaderboard": table(COLUMNS, rows),
        "parts": sections({"summary": rows}, groups)["summary"],
        "several": any(row["runs"] > 1 for row in rows),
        "unreported": [run.path.as_posix() for run in runs if not RunDirectory(run.path).report.is_file()],
        "against": comparison.against,
        "differences": table(DIFFERENCES, differences),
    }
    write_atomically(out, rendered("leaderboard.html.j2", content))


def _row(kind: Kind, group: str, names: Sequence[str], folder: Path) -> Row:
    """A row of the summary with the recipe, the network and the data, and links to the reports as seen from a folder."""
    links = [
        (_seed(run), os.path.relpath(RunDirectory(run.path).report.resolve(), folder).replace(os.sep, "/"))
        for run in kind.runs
        if RunDirectory(run.path).report.is_file()
    ]
    recipe: Mapping[str, Any] = kind.first.recipe
    return {
        **row_of(kind, group, names),
        "recipe": recipe.get("recipe"),
        "network": _network(kind.first),
        "data": recipe.get("data", {}).get("id"),
        "reports": " ".join(seed for seed, _ in links) or None,
        "reports_links": links,
    }


def _seed(run: Run) -> str:
    seed = run.recipe.get("run", {}).get("seed")
    return "report" if seed is None else f"seed {seed}"


def _network(run: Run) -> str | None:
    """The architecture by its recipe, or as the evaluated detector says."""
    known = (run.recipe.get("model", {}), (run.evaluation or {}).get("detector", {}))
    return next((str(part["architecture"]) for part in known if "architecture" in part), None)


def _differences(comparison: Comparison) -> list[Row]:
    rows: list[Row] = []
    for line in comparison.lines:
        found = line.difference
        rows.append(
            {
                "arm": line.arm,
                "metric": COMPARED[line.metric],
                "set": f"{line.metric} {line.group} {line.sets}",
                "sets": line.group or line.sets[0],
                "value": line.mean,
                "value_deviation": line.deviation,
                "difference": None if found is None else found.mean,
                "difference_low": None if found is None else found.low,
                "difference_high": None if found is None else found.high,
                "pairs": None if found is None else found.pairs,
            }
        )
    return rows
