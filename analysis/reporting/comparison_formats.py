"""A comparison on a terminal, and as JSON and CSV for other programs."""

import csv
import io
import json
import math
from collections.abc import Iterator
from typing import Any

from certood.analysis.intervals import CONFIDENCE
from certood.analysis.reporting.comparison import ACCURACY, COMPARED, LOWER_IS_BETTER, Comparison, Line
from certood.analysis.reporting.kinds import ALL
from certood.evaluation import METRICS
from certood.runs.schema import SCHEMA_VERSION
from certood.text_tables import TextTable

KIND = "comparison"
COLUMNS = (
    "arm",
    "score",
    "metric",
    "group",
    "sets",
    "seeds",
    "mean",
    "standard_deviation",
    "against",
    "difference",
    "low",
    "high",
    "pairs",
)


def comparison_tables(comparison: Comparison, *, by_set: bool = False) -> Iterator[TextTable]:
    """Tables of at most 80 columns where names are short: means, differences, and with `by_set` means on every OOD set."""
    yield _means(comparison)
    if len(comparison.arms) > 1:
        yield _differences(comparison)
    if by_set:
        yield _by_set(comparison)


def notes(comparison: Comparison) -> list[str]:
    """What the tables rest on, in sentences: scores, groups of sets, and arms whose seeds are not those of the others."""
    scores = {arm.name: arm.score for arm in comparison.arms}
    found = []
    if len(set(scores.values())) > 1:
        found.append(
            "Arms are measured by different scores, each by its detector's own ("
            + ", ".join(f"{name}: {score}" for name, score in scores.items())
            + "); --score compares all by one."
        )
    else:
        found.append(f"Score: {comparison.arms[0].score}.")
    found += [f"{name.capitalize()}: {', '.join(sets)}." for name, sets in comparison.groups.items()]
    base = next(arm for arm in comparison.arms if arm.name == comparison.against)
    for arm in comparison.arms:
        if arm.seeds != base.seeds:
            common = [seed for seed in arm.seeds if seed in base.runs and seed is not None]
            found.append(
                f"The seeds of {arm.name} and {base.name} differ: "
                + (f"{_listed(common)} in common, which alone are paired." if common else "no pair, and no difference.")
            )
    return found


def comparison_as_json(comparison: Comparison) -> str:
    """Every number, in per cent; what is not one (an interval of one seed) is null."""
    content = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "against": comparison.against,
        "confidence": CONFIDENCE,
        "interval": "paired t over seeds",
        "groups": {name: list(sets) for name, sets in comparison.groups.items()},
        "arms": {
            arm.name: {"score": arm.score, "runs": {str(seed): arm.runs[seed].path.as_posix() for seed in arm.seeds}}
            for arm in comparison.arms
        },
        "lines": [_as_row(line, comparison) | {"values": list(line.values)} for line in comparison.lines],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def comparison_as_csv(comparison: Comparison) -> str:
    """A row for every arm, metric, and group of sets or single set, in per cent; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_as_row(line, comparison) for line in comparison.lines)
    return text.getvalue()


def is_comparison_json(content: bytes) -> bool:
    """Whether a file holds a comparison as JSON."""
    try:
        found = json.loads(content)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("kind") == KIND


def is_comparison_csv(content: bytes) -> bool:
    """Whether a file holds a comparison as CSV."""
    return content.splitlines()[:1] == [",".join(COLUMNS).encode()]


def _as_row(line: Line, comparison: Comparison) -> dict[str, Any]:
    difference = line.difference
    numbers = {
        "mean": line.mean,
        "standard_deviation": line.deviation,
        "difference": None if difference is None else difference.mean,
        "low": None if difference is None else difference.low,
        "high": None if difference is None else difference.high,
    }
    return {
        "arm": line.arm,
        "score": next(arm.score for arm in comparison.arms if arm.name == line.arm),
        "metric": line.metric,
        "group": line.group,
        "sets": " ".join(line.sets),
        "seeds": len(line.values),
        "against": None if difference is None else comparison.against,
        "pairs": None if difference is None else difference.pairs,
        **{name: None if value is None or math.isnan(value) else value for name, value in numbers.items()},
    }


def _means(comparison: Comparison) -> TextTable:
    table = TextTable(
        ("arm", "seeds", *_heads(comparison)), title="mean ± standard deviation over seeds, in %", left=(0,)
    )
    for metric, heading in COMPARED.items():
        table.line(_headed(metric, heading))
        for arm in comparison.arms:
            lines = {group: comparison.find(arm.name, metric, group) for group in _groups(comparison, metric)}
            cells = [_mean(lines[group]) if group in lines else "" for group in comparison.groups]
            table.row(arm.name, str(len(arm.runs)), *cells)
    return table


def _differences(comparison: Comparison) -> TextTable:
    table = TextTable(
        ("arm", *_heads(comparison)),
        title=f"difference from {comparison.against} in points ± half of its 95 % interval\n"
        "paired t over seeds, which needs two in common; * the interval leaves out 0",
    )
    others = [arm for arm in comparison.arms if arm.name != comparison.against]
    for metric, heading in COMPARED.items():
        table.line(_headed(metric, heading))
        for arm in others:
            lines = {group: comparison.find(arm.name, metric, group) for group in _groups(comparison, metric)}
            cells = [_difference(lines[group]) if group in lines else "" for group in comparison.groups]
            table.row(arm.name, *cells)
    return table


def _by_set(comparison: Comparison) -> TextTable:
    table = TextTable(("arm", *METRICS.values()), title="by OOD set, mean ± standard deviation over seeds, in %")
    known = {(line.arm, line.metric, line.sets): line for line in comparison.lines if not line.group}
    for name in comparison.sets:
        table.line(name)
        for arm in comparison.arms:
            table.row(arm.name, *(_mean(known[arm.name, metric, (name,)]) for metric in METRICS))
    return table


def _heads(comparison: Comparison) -> list[str]:
    return [f"{group} sets" for group in comparison.groups]


def _groups(comparison: Comparison, metric: str) -> list[str]:
    return [ALL] if metric == ACCURACY else list(comparison.groups)


def _headed(metric: str, heading: str) -> str:
    return f"{heading} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def _mean(line: Line) -> str:
    return f"{line.mean:.1f}" if math.isnan(line.deviation) else f"{line.mean:.1f} ± {line.deviation:.1f}"


def _difference(line: Line) -> str:
    found = line.difference
    if found is None:
        return "–"
    mean = f"{found.mean:+.1f}".replace("-", "−")
    if math.isnan(found.low):
        return mean
    return f"{mean} ± {(found.high - found.low) / 2:.1f} {'*' if found.low > 0 or found.high < 0 else ' '}"


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
