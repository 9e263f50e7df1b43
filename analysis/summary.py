"""certification.json: certified metrics and fractions of a run, computed from its certificates."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from certood.analysis.certified_metrics import threat_metrics
from certood.analysis.records import Certificate
from certood.errors import CertoodError

RUN_NUMBERS = ("violations", "seconds", "global_lipschitz")
COUNTS = ("n", "correct")
SMOOTHED = ("smoothed_fraction", "median_radius_smoothing")
CERTIFIED = (
    "certified_fraction",
    "refuted_fraction",
    "median_radius_certified",
    "median_radius_attack",
    "median_radius_gradient",
    "median_tightness",
    "median_gradient_norm",
    "median_lipschitz_sampled",
    "median_lipschitz_certified",
)
METRICS = ("auc", "fpr95", "aauc", "gauc", "afpr95", "gfpr95", "both_sided_aauc", "both_sided_gauc")


def entry_numbers(kind: str, *, smoothed: bool, inside: bool) -> tuple[str, ...]:
    """The numbers that a set of this kind gets; metrics only beside an ID set. Those of both_sided have that prefix."""
    if smoothed:
        return COUNTS + SMOOTHED
    return COUNTS + CERTIFIED + (METRICS if kind == "ood" and inside else ())


def summarise(records: Sequence[Certificate], eps: Sequence[float], *, smoothed: bool = False) -> dict[str, Any]:
    """Fractions and metrics by set, over the radii ε, and how many inequalities were violated.

    A smoothed run has `smoothed_fraction` and `median_radius_smoothing` instead of what is certified of the detector itself.
    Raises CertoodError where there is no record.
    """
    if not records:
        raise CertoodError("there is no certificate to summarise")
    groups: dict[str, list[Certificate]] = {}
    for record in records:
        groups.setdefault(record.set, []).append(record)
    inside = [record for record in records if record.kind == "id"]
    sets = {}
    for name, group in groups.items():
        entry = _fractions(group, eps, smoothed=smoothed)
        if not smoothed and group[0].kind == "ood" and inside:
            entry |= _metrics(inside, group, eps)
        sets[name] = entry
    return {
        "sets": sets,
        "violations": sum(record.violations for record in records),
        "seconds": sum(record.seconds for record in records),
    }


def _fractions(group: Sequence[Certificate], eps: Sequence[float], *, smoothed: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "kind": group[0].kind,
        "n": len(group),
        "correct": _mean([record.correct for record in group]),
    }
    verdicts = [[part.verdict for part in record.at] for record in group]
    certified = [_mean([own[place] == "certified" for own in verdicts]) for place in range(len(eps))]
    if smoothed:
        return entry | {
            "smoothed_fraction": certified,
            "median_radius_smoothing": _median([record.radius_smoothing for record in group]),
        }
    return entry | {
        "certified_fraction": certified,
        "refuted_fraction": [_mean([own[place] == "refuted" for own in verdicts]) for place in range(len(eps))],
        "median_radius_certified": _median([record.radius_certified for record in group]),
        "median_radius_attack": _median([record.radius_attack for record in group]),
        "median_radius_gradient": _median([record.radius_gradient for record in group if record.correct]),
        "median_tightness": _median(
            [r.radius_certified / r.radius_attack for r in group if r.correct and r.radius_attack > 0]
        ),
        "median_gradient_norm": _median([record.gradient_norm for record in group]),
        "median_lipschitz_sampled": _median([record.lipschitz_sampled for record in group]),
        "median_lipschitz_certified": [
            _median([record.at[place].lipschitz for record in group]) for place in range(len(eps))
        ],
    }


def _metrics(inside: Sequence[Certificate], outside: Sequence[Certificate], eps: Sequence[float]) -> dict[str, Any]:
    clean_id, clean_ood = [record.score for record in inside], [record.score for record in outside]
    one_sided, both_sided = [], []
    for place in range(len(eps)):
        arguments = (
            clean_id,
            clean_ood,
            [record.at[place].attacked for record in outside],
            [record.at[place].lower for record in outside],
            outside[0].threshold,
        )
        one_sided.append(threat_metrics(*arguments))
        both_sided.append(
            threat_metrics(
                *arguments,
                attacked_id=[record.at[place].attacked for record in inside],
                bound_id=[record.at[place].upper for record in inside],
            )
        )
    entry: dict[str, Any] = {"auc": one_sided[0].auc, "fpr95": one_sided[0].fpr95}
    for name in ("aauc", "gauc", "afpr95", "gfpr95"):
        entry[name] = [getattr(part, name) for part in one_sided]
    entry["both_sided"] = {name: [getattr(part, name) for part in both_sided] for name in ("aauc", "gauc")}
    return entry


def summary_table(summary: dict[str, Any], eps: Sequence[float], *, place: int = 0) -> Table:
    """A row a set at one ε; fractions and AUC in per cent."""
    smoothed = any("smoothed_fraction" in entry for entry in summary["sets"].values())
    table = Table(title=f"ε = {eps[place]:g} in pixels; {summary['violations']} violations")
    table.add_column("set")
    heads = ("n", "correct %", "smoothed %", "median radius") if smoothed else (
        "n", "correct %", "certified %", "refuted %", "radius certified", "radius attack", "AUC / AAUC / GAUC %"
    )  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right")
    for name, entry in summary["sets"].items():
        cells = [escape(f"{name} ({entry['kind']})"), str(entry["n"]), f"{100 * entry['correct']:.1f}"]
        if smoothed:
            cells += [f"{100 * entry['smoothed_fraction'][place]:.1f}", f"{entry['median_radius_smoothing']:.4g}"]
        else:
            cells += [
                f"{100 * entry['certified_fraction'][place]:.1f}",
                f"{100 * entry['refuted_fraction'][place]:.1f}",
                f"{entry['median_radius_certified']:.4g}",
                f"{entry['median_radius_attack']:.4g}",
            ]
            metrics = "–"
            if "auc" in entry:
                metrics = (
                    f"{100 * entry['auc']:.1f} / {100 * entry['aauc'][place]:.1f} / {100 * entry['gauc'][place]:.1f}"
                )
            cells.append(metrics)
        table.add_row(*cells)
    return table


def _mean(values: Sequence[bool]) -> float:
    return float(np.mean(values))


def _median(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return float(np.median(finite)) if finite else math.nan
