"""The worst images of a run, with pictures where the image sets are still the ones that were certified."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from certood.analysis.records import Certificate
from certood.analysis.reporting.drawing import Picture, thumbnail
from certood.analysis.reporting.runs import Run
from certood.data import ImageSource, load_set
from certood.errors import CertoodError
from certood.runs import load_run_data

WORST = 6


@dataclass(frozen=True)
class WorstImage:
    """An image of a certified run and why it is shown; `picture` is None where its set is not here any more."""

    record: Certificate
    radius: float
    picture: Picture | None


@dataclass(frozen=True)
class WorstImages:
    """The worst images of a run: fragile ones are correct with the smallest radius, wrong ones have the largest margin."""

    fragile: tuple[WorstImage, ...]
    wrong: tuple[WorstImage, ...]
    missing: tuple[str, ...]


def worst_images(run: Run, count: int = WORST) -> WorstImages:
    """The `count` worst images of both kinds; `missing` names the sets of which no picture can be shown."""
    column = "radius_smoothing" if run.smoothed else "radius_certified"
    radii = {id(record): _number(getattr(record, column)) for record in run.certificates}
    right = sorted(
        (record for record in run.certificates if record.correct),
        key=lambda record: (radii[id(record)], record.radius_attack),
    )[:count]
    wrong = sorted((record for record in run.certificates if not record.correct), key=lambda record: -record.margin)[
        :count
    ]
    sources = _sources(run, [*right, *wrong])
    missing = tuple(sorted({record.set for record in [*right, *wrong]} - sources.keys()))
    fragile, failed = (
        tuple(WorstImage(record, radii[id(record)], _picture(sources, record)) for record in part)
        for part in (right, wrong)
    )
    return WorstImages(fragile, failed, missing)


def _number(radius: float) -> float:
    return 0.0 if math.isnan(radius) else radius


def _sources(run: Run, records: Sequence[Certificate]) -> dict[str, ImageSource]:
    """The sets of these records that can be loaded and have the hash under which they were certified."""
    hashes = run.settings.get("sets", {})
    found: dict[str, ImageSource] = {}
    for name, kind in {record.set: record.kind for record in records}.items():
        try:
            source = _id_source(run, name) if kind == "id" else _ood_source(run, name)
        except CertoodError:
            continue
        # Without a stored hash nothing says that this is the same set; a picture of another image would mislead.
        if source is not None and source.fingerprint == hashes.get(name):
            found[name] = source
    return found


def _id_source(run: Run, name: str) -> ImageSource | None:
    splits, _ = load_run_data(run.path)
    return splits.test if splits.test.name == name else None


def _ood_source(run: Run, name: str) -> ImageSource:
    data = run.recipe.get("data", {})
    return load_set(name, root=Path(data.get("root", "data")), split="test", size=data.get("size"))


def _picture(sources: dict[str, ImageSource], record: Certificate) -> Picture | None:
    source = sources.get(record.set)
    if source is None or not 0 <= record.index < len(source):
        return None
    image = source.batch(torch.tensor([record.index]))[0].numpy()
    return thumbnail(image, f"{record.set}, image {record.index}")
