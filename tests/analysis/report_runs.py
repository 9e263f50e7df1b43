"""Runs as the report reads them, made of certificates whose numbers are known."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from certood.analysis.certify_run import write_json
from certood.analysis.evidence.registry import quantities
from certood.analysis.records import AtRadius, Certificate, append_certificates
from certood.analysis.settings import Settings
from certood.analysis.summary import summarise
from certood.data import load_id, load_set

EPS = (0.02, 0.005)
RECIPE: dict[str, Any] = {
    "recipe": "digits-ce",
    "run": {"seed": 0},
    "data": {"id": "digits", "ood": ["digits-near", "digits-photo"], "validation": 0.2, "root": "data"},
    "model": {"architecture": "small-cnn", "options": {}},
    "record": {"certood": "0.1.0", "torch": "2.6.0", "python": "3.11.0", "sha256": {"id-train": "ab12"}},
}


def certificate(
    name: str, kind: str, index: int, radius: float, *, eps: Sequence[float] = EPS, **changes: Any
) -> Certificate:
    """A record of an image that is decided rightly where `radius` is above 0; the attack radius is twice the certified one."""
    right = radius > 0 or math.isnan(radius)
    score = changes.pop("score", -2.0 if right == (kind == "id") else 0.0)
    values: dict[str, float] = {
        "gradient_norm": 5.0 + index,
        "lipschitz_sampled": 6.0 + index,
        "lipschitz_clever": 6.5 + index,
        "lipschitz_certified": 7.0 + index,
        "lipschitz_global": 1234.5,
        "radius_gradient": radius,
        "radius_global": radius / 8,
        "radius_certified": radius,
        "radius_attack": 2 * radius,
    }
    values |= {name: changes.pop(name) for name in list(changes) if name in {one.title for one in quantities()}}
    at = tuple(
        AtRadius(
            one,
            "certified" if radius >= one else "refuted" if not right else "unknown",
            {
                "lower": score - one,
                "upper": score + one,
                "attacked": score,
                "lipschitz": values["lipschitz_certified"] - 0.5 * place,
                "sampled": values["lipschitz_sampled"],
            },
        )
        for place, one in enumerate(eps)
    )
    return Certificate(
        set=name,
        kind=kind,
        index=index,
        score=score,
        threshold=-1.0,
        margin=abs(score + 1.0),
        accepted=score <= -1.0,
        verdict=at[0].verdict,
        values=values,
        at=at,
        **changes,
    )


def certificates(inside: Sequence[float], near: Sequence[float], **changes: Any) -> list[Certificate]:
    """Records of digits and of digits-near with these certified radii."""
    return [
        certificate(name, kind, index, radius, **changes)
        for name, kind, radii in (("digits", "id", inside), ("digits-near", "ood", near))
        for index, radius in enumerate(radii)
    ]


def write_run(
    folder: Path,
    records: Sequence[Certificate] = (),
    *,
    fpr95: float | None = 0.25,
    settings: Settings | None = None,
    recipe: dict[str, Any] | None = RECIPE,
    limit: int | None = 3,
    n: int = 10,
) -> Path:
    """A run directory with these certificates, and an evaluation of `n` images a set where `fpr95` is given.

    Hashes are those of the real sets.
    """
    folder.mkdir(parents=True)
    if recipe is not None:
        (folder / "recipe.toml").write_text(tomli_w.dumps(recipe), "utf-8")
    if fpr95 is not None:
        metrics = {"n": n, "auroc": 1 - fpr95, "fpr95": fpr95, "aupr_in": 0.9, "aupr_out": 0.9}
        entry = {"threshold": -1.0, "sets": {"digits-near": metrics, "digits-photo": metrics}, "mean": metrics}
        content = {"accuracy": 0.875, "n_id": n, "score": "energy", "scores": {"energy": entry}}
        (folder / "evaluation.json").write_text(json.dumps(content), "utf-8")
    if records:
        settings = settings or Settings(eps=EPS)
        append_certificates(folder / "certificates.csv", records, settings.eps)
        plain = settings.record()
        smoothed = settings.method == "smoothing"
        result = {
            "norm": plain["norm"],
            "method": settings.method,
            "dtype": "float64",
            "eps": list(settings.eps),
            **summarise(records, settings.eps, smoothed=smoothed),
            "global_lipschitz": 1234.5,
            "score": "energy",
            "threshold": -1.0,
            "settings": plain,
            "versions": {"certood": "0.1.0", "torch": "2.6.0"},
        }
        write_json(folder / "certification.json", result)
        splits = load_id("digits", root=Path("data"), validation=0.2, seed=0)
        near = load_set("digits-near", root=Path("data"))
        hashes = {"digits": splits.test.fingerprint, "digits-near": near.fingerprint}
        write_json(folder / "certification_settings.json", plain | {"limit": limit, "sets": hashes})
    return folder
