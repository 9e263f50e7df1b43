"""certification.json: certified metrics and fractions of a run, computed from its certificates."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from certood.analysis.certified_metrics import threat_metrics
from certood.analysis.evidence.quantities import Kind, Quantity, Side
from certood.analysis.evidence.registry import quantities
from certood.analysis.records import AtRadius, Certificate
from certood.errors import CertoodError
from certood.text_tables import TextTable

RUN_NUMBERS = ("violations", "seconds", "float32_difference", "global_lipschitz")
COUNTS = ("n", "correct")
TIGHTNESS = "median_tightness"
FRACTIONS = {False: ("certified_fraction", "refuted_fraction"), True: ("smoothed_fraction",)}
# Metrics of an OOD set: areas under the ROC curve, and shares of its images.
AREAS = ("auc", "aauc", "gauc", "both_sided_aauc", "both_sided_gauc")
FALSE_POSITIVES = ("fpr95", "afpr95", "gfpr95")


def median_name(quantity: Quantity) -> str:
    """What the median of a quantity over the images of a set is called."""
    return f"median_{quantity.title}"


def entry_numbers(kind: str, *, smoothed: bool, inside: bool) -> tuple[str, ...]:
    """The numbers that a set of this kind gets; metrics only where there is an ID set. Those of both_sided have that prefix."""
    medians = tuple(median_name(quantity) for quantity in quantities(smoothed=smoothed))
    common = COUNTS + FRACTIONS[smoothed] + medians
    if smoothed:
        return common
    return (*common, TIGHTNESS, *((*AREAS, *FALSE_POSITIVES) if kind == "ood" and inside else ()))


def summarise(
    records: Sequence[Certificate], eps: Sequence[float], *, smoothed: bool = False, tpr: float = 0.95
) -> dict[str, Any]:
    """Fractions, medians and metrics by set, over the radii ε, and how many inequalities were violated.

    A smoothed run has the fraction and the medians of the smoothed detector instead of what is certified of the network itself.
    What is called FPR95 is not known (not a number) where γ accepts another share `tpr` than 95 %. Raises CertoodError where
    there is no record.
    """
    if not records:
        raise CertoodError("there is no certificate to summarise")
    groups: dict[str, list[Certificate]] = {}
    for record in records:
        groups.setdefault(record.set, []).append(record)
    inside = [record for record in records if record.kind == "id"]
    sets = {}
    for name, group in groups.items():
        entry = _counts(group, eps, smoothed=smoothed)
        for number, samples in median_samples(group, smoothed=smoothed).items():
            medians = [_median(sample) for sample in samples]
            entry[number] = medians if number in _per_eps(smoothed=smoothed) else medians[0]
        if not smoothed and group[0].kind == "ood" and inside:
            entry |= _metrics(inside, group, eps)
            if tpr != 0.95:
                unknown = [math.nan] * len(eps)
                entry |= {"fpr95": math.nan, "afpr95": unknown, "gfpr95": unknown}
        sets[name] = entry
    return {
        "sets": sets,
        "violations": sum(record.violations for record in records),
        "seconds": sum(record.seconds for record in records),
        "float32_difference": max(record.float32_difference for record in records),
    }


def _counts(group: Sequence[Certificate], eps: Sequence[float], *, smoothed: bool) -> dict[str, Any]:
    shares = {
        verdict: [_mean([record.at[place].verdict == verdict for record in group]) for place in range(len(eps))]
        for verdict in ("certified", "refuted")
    }
    return {
        "kind": group[0].kind,
        "n": len(group),
        "correct": _mean([record.correct for record in group]),
        **dict(zip(FRACTIONS[smoothed], shares.values(), strict=False)),
    }


def median_samples(group: Sequence[Certificate], *, smoothed: bool) -> dict[str, list[list[float]]]:
    """The known values whose medians a set of certificates has, by the medians' names: one sample, or one for every ε."""
    found = {
        median_name(quantity): [[x for x in sample if not math.isnan(x)] for sample in _samples(group, quantity)]
        for quantity in quantities(smoothed=smoothed)
    }
    if not smoothed:
        found[TIGHTNESS] = [[r.radius_certified / r.radius_attack for r in group if r.radius_attack > 0]]
    return found


def _samples(group: Sequence[Certificate], quantity: Quantity) -> list[list[float]]:
    """The values of a quantity, for every ε where there is one for each.

    Without wrong decisions where they have no radius of their own: estimates of radii.
    """
    kept = [record for record in group if record.correct] if quantity.of == "radius" else group
    chosen = group if quantity.zero_where_wrong else kept
    if not quantity.per_eps:
        return [[getattr(record, quantity.name) for record in chosen]]
    return [[getattr(record.at[place], quantity.name) for record in chosen] for place in range(len(group[0].at))]


def _per_eps(*, smoothed: bool) -> set[str]:
    return {median_name(quantity) for quantity in quantities(smoothed=smoothed) if quantity.per_eps}


def _metrics(inside: Sequence[Certificate], outside: Sequence[Certificate], eps: Sequence[float]) -> dict[str, Any]:
    clean_id, clean_ood = [record.score for record in inside], [record.score for record in outside]
    one_sided, both_sided = [], []
    for place in range(len(eps)):
        arguments = (
            clean_id,
            clean_ood,
            [_least(record.at[place], "found", None) for record in outside],
            [-_least(record.at[place], "certified", "lower", sign=-1) for record in outside],
            outside[0].threshold,
        )
        one_sided.append(threat_metrics(*arguments))
        both_sided.append(
            threat_metrics(
                *arguments,
                attacked_id=[-_least(record.at[place], "found", None, sign=-1) for record in inside],
                bound_id=[_least(record.at[place], "certified", "upper") for record in inside],
            )
        )
    entry: dict[str, Any] = {"auc": one_sided[0].auc, "fpr95": one_sided[0].fpr95}
    for name in ("aauc", "gauc", "afpr95", "gfpr95"):
        entry[name] = [getattr(part, name) for part in one_sided]
    entry["both_sided"] = {name: [getattr(part, name) for part in both_sided] for name in ("aauc", "gauc")}
    return entry


def _least(part: AtRadius, kind: Kind, side: Side | None, *, sign: int = 1) -> float:
    """The least value (times `sign`) of the scores of a ball of this kind and side; not a number where none is known."""
    values = [
        sign * getattr(part, quantity.name)
        for quantity in quantities()
        if quantity.per_eps and (quantity.of, quantity.kind) == ("score", kind) and side in (None, quantity.side)
    ]
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def summary_table(summary: dict[str, Any], eps: Sequence[float], *, place: int = 0) -> TextTable:
    """One row per set at one ε; fractions and AUC in per cent, radii the medians, in pixels."""
    smoothed = any("smoothed_fraction" in entry for entry in summary["sets"].values())
    heads = ("n", "correct", "smoothed", "median radius") if smoothed else (
        "n", "correct", "certified", "refuted", "radius", "attack", "AUC", "AAUC", "GAUC"
    )  # fmt: skip
    medians = "" if smoothed else "; radius, attack: medians of the certified and attack radius"
    title = f"ε = {eps[place]:g} in pixels; {summary['violations']} violations\nshares and AUC in %{medians}"
    table = TextTable(heads, title=title, left=())
    for name, entry in summary["sets"].items():
        table.line(f"{name} ({entry['kind']})")
        cells = [str(entry["n"]), f"{100 * entry['correct']:.1f}"]
        if smoothed:
            cells += [f"{100 * entry['smoothed_fraction'][place]:.1f}", f"{entry['median_radius_smoothing']:.4g}"]
        else:
            cells += [
                f"{100 * entry['certified_fraction'][place]:.1f}",
                f"{100 * entry['refuted_fraction'][place]:.1f}",
                f"{entry['median_radius_certified']:.4g}",
                f"{entry['median_radius_attack']:.4g}",
            ]
            if "auc" in entry:
                cells += [f"{100 * value:.1f}" for value in (entry["auc"], entry["aauc"][place], entry["gauc"][place])]
        table.row(*cells)
    return table


def _mean(values: Sequence[bool]) -> float:
    return float(np.mean(values))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan
