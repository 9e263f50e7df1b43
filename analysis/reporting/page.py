"""The page of a report: what it shows, in one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from certood.analysis.reporting import provenance
from certood.analysis.reporting.columns import NORM_NAMES
from certood.analysis.reporting.curves import fractions, roc_curves, threat_curves, training_curves
from certood.analysis.reporting.histograms import score_histograms
from certood.analysis.reporting.kinds import kinds_of_training, ood_groups
from certood.analysis.reporting.links import image_correlations, run_correlations, run_points
from certood.analysis.reporting.pictures import worst_images
from certood.analysis.reporting.rendering import rendered, sections, table
from certood.analysis.reporting.runs import Run
from certood.analysis.reporting.scatters import run_scatter, scatters
from certood.analysis.reporting.tables import table_columns, tables
from certood.analysis.reporting.verdict import verdict
from certood.files import write_atomically


def write_page(runs: Sequence[Run], out: Path, near: Sequence[str] = ()) -> None:
    """Render the report of some runs to a file; raises RunDirectoryError where it cannot be written.

    `near` are the OOD sets that are near the ID set; raises CertoodError for one that no run has.
    """
    write_atomically(out, rendered("report.html.j2", _content(runs, near)))


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
