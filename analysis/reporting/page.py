"""The page of a report: everything in one HTML file that needs no network."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from certood import __version__
from certood.analysis.records import Certificate
from certood.analysis.reporting.links import image_correlations, run_points, spearman
from certood.analysis.reporting.plots import curves, run_scatter, scatter, thumbnail
from certood.analysis.reporting.runs import Run
from certood.analysis.reporting.tables import (
    BENCHMARK_HEADS,
    THEORY_HEADS,
    benchmark_rows,
    best_cells,
    shown,
    theory_rows,
)
from certood.errors import CertoodError, RunDirectoryError
from certood.run_data import load_run_data

WORST = 8


def write_page(runs: Sequence[Run], out: Path) -> None:
    """Render the report of some runs to a file; raises RunDirectoryError where it cannot be written."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("certood.analysis.reporting"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["shown"] = shown
    text = environment.get_template("report.html.j2").render(**_content(runs))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        temporary.write_text(text, "utf-8")
        temporary.replace(out)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {out}: {error.strerror or error}") from error


def _content(runs: Sequence[Run]) -> Mapping[str, Any]:
    benchmark, theory = benchmark_rows(runs), theory_rows(runs)
    points = run_points(runs)
    over_runs = None
    if len(points) >= 3:
        over_runs = spearman(np.array([norm for _, norm, _ in points]), np.array([fpr for _, _, fpr in points]))
    return {
        "title": "Certified OOD detection: " + ", ".join(run.name for run in runs),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "runs": runs,
        "verdict": verdict(runs),
        "benchmark": {
            "heads": BENCHMARK_HEADS,
            "rows": benchmark,
            "best": {
                "fpr95": best_cells(benchmark, "fpr95", lowest=True),
                "auroc": best_cells(benchmark, "auroc", lowest=False),
            },
        },
        "theory": {
            "heads": THEORY_HEADS,
            "rows": theory,
            "best": {
                "radius_certified": best_cells(theory, "radius_certified", lowest=False),
                "gauc": best_cells(theory, "gauc", lowest=False),
                "lipschitz_certified": best_cells(theory, "lipschitz_certified", lowest=True),
            },
        },
        "curves": curves(runs),
        "links": [
            (run, image_correlations(run), scatter(run)) for run in runs if run.certificates and not run.smoothed
        ],
        "over_runs": over_runs,
        "points": points,
        "run_scatter": run_scatter(points),
        "worst": [(run, _worst(run)) for run in runs if run.certificates],
        "violations": sum(int(run.certification["violations"]) for run in runs if run.certification),
        "smoothed": [run for run in runs if run.smoothed],
    }


def verdict(runs: Sequence[Run]) -> list[str]:
    """The sentences at the top: which run detects best, which is certified furthest, whether they are the same."""
    sentences = []
    means = {run.name: 100 * run.benchmark["mean"]["fpr95"] for run in runs if run.benchmark.get("mean")}
    if means:
        best = min(means, key=lambda name: means[name])
        sentences.append(
            f"Lowest mean FPR95: {best} with {means[best]:.1f} % (worst of {len(means)}: {max(means.values()):.1f} %)."
        )
    radii: dict[str, dict[str, float]] = {"id": {}, "ood": {}}
    for run in runs:
        for kind, found in radii.items():
            values = [record.radius_certified for record in run.certificates if record.kind == kind]
            if values and not run.smoothed:
                found[run.name] = float(np.median(values))
    for kind, phrase in (("id", "ID images"), ("ood", "OOD images")):
        if radii[kind]:
            best = max(radii[kind], key=lambda name: radii[kind][name])
            sentences.append(
                f"Largest median certified radius of {phrase}: {best} with {radii[kind][best]:.4f} in pixels."
            )
    if means and radii["id"] and len(means) > 1:
        same = min(means, key=lambda name: means[name]) == max(radii["id"], key=lambda name: radii["id"][name])
        sentences.append(
            f"The run that detects best is {'also' if same else 'not'} the one whose ID decisions are certified furthest; "
            f"this rests on {len(runs)} runs."
        )
    if not any(run.certificates for run in runs):
        sentences.append(
            "None of these runs has been certified yet (certood certify RUN), so that nothing is guaranteed."
        )
    return sentences


def _worst(run: Run) -> list[tuple[Certificate, str | None]]:
    """The rightly decided images with the smallest radii, and wrong decisions with the largest margins, with pictures."""
    key = "radius_smoothing" if run.smoothed else "radius_certified"
    right = sorted((record for record in run.certificates if record.correct), key=lambda record: getattr(record, key))
    wrong = sorted((record for record in run.certificates if not record.correct), key=lambda record: -record.margin)
    chosen = [*right[: WORST // 2], *wrong[: WORST // 2]]
    try:
        splits, sets = load_run_data(run.path)
    except CertoodError:
        return [(record, None) for record in chosen]
    sources = {splits.test.name: splits.test, **sets}
    pictures: list[tuple[Certificate, str | None]] = []
    for record in chosen:
        source = sources.get(record.set)
        picture = None
        if source is not None and record.index < len(source):
            picture = thumbnail(source.batch(torch.tensor([record.index]))[0].numpy())
        pictures.append((record, picture))
    return pictures
