"""A finished certification, read back with all that it is about, and its claims one by one."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from certood.analysis.evidence.direct import largest_radius
from certood.analysis.evidence.smoothing import MedianSmoothing
from certood.analysis.recheck import unsound
from certood.analysis.records import Certificate, read_certificates
from certood.analysis.settings import Settings
from certood.data import ImageSource, to_pixels
from certood.detector import Detector
from certood.errors import CertoodError, RunDirectoryError
from certood.rounding import box_within
from certood.runs import RunDirectory
from certood.runs.directory import read_json
from certood.runs.identity import certificates_hash, detector_identity, differences
from certood.scores import Score
from certood.scores.registry import score_of_description

# Inside a ball of the norms 2 and 1 lies a box of half-width ε/√d or ε/d, which is rounded by less than this.
ROUNDED = 1 - 1e-15


@dataclass(frozen=True)
class Claim:
    """That the decision about one image is kept over a ball: S ≤ γ where `accepted`, else S > γ.

    `lower` and `upper` (C, H, W) are the ends of a box within the ball, numbers of float32; `image` (C, H, W) is its centre.
    """

    name: str
    record: Certificate
    eps: float
    norm: float
    image: NDArray[np.float32]
    lower: NDArray[np.float32]
    upper: NDArray[np.float32]

    @property
    def accepted(self) -> bool:
        """Whether the image is accepted as in-distribution."""
        return self.record.accepted

    @property
    def weaker(self) -> str:
        """Why the box says less than what was certified."""
        if self.norm == math.inf:
            return "the l_inf ball, rounded inwards to numbers of float32"
        divisor = "√d" if self.norm == 2 else "d"
        return (
            f"the box inside the l{self.norm:g} ball, of half-width ε/{divisor}, rounded inwards to numbers of float32"
        )


@dataclass(frozen=True)
class CertifiedRun:
    """A certification: the detector that it is about, how it was made, its records and its images."""

    detector: Detector
    settings: Settings
    records: Sequence[Certificate]
    sources: Mapping[str, ImageSource]

    @property
    def part(self) -> tuple[nn.Module, Score]:
        """The network that decides, of a guarded detector its guard, and a score of its outputs whose bounds hold for S."""
        return self.detector.bounded_part()

    def claims(self, limit: int | None = None) -> Iterator[Claim]:
        """Every decision that is certified at a radius, of at most `limit` images a set."""
        slugs, radii = _slugs({record.set for record in self.records}), _short(self.settings.eps)
        taken: dict[str, set[int]] = {}
        for record in self.records:
            certified = [part.eps for part in record.at if part.verdict == "certified"]
            seen = taken.setdefault(record.set, set())
            if not certified or (limit is not None and len(seen) >= limit):
                continue
            seen.add(record.index)
            image = to_pixels(self.sources[record.set].batch(torch.tensor([record.index])))[0].numpy()
            if image.dtype != np.float32:
                raise CertoodError(f"expected images of float32, got {image.dtype} in {record.set}")
            for eps in certified:
                lower, upper = box_within(image, self._half_width(eps, image.size))
                name = f"{slugs[record.set]}-{record.index}-{radii[eps]}"
                yield Claim(name, record, eps, self.settings.norm, image, lower, upper)

    def _half_width(self, eps: float, pixels: int) -> float:
        """That of a box inside a ball."""
        norm = self.settings.norm
        return eps if norm == math.inf else eps / largest_radius(norm, pixels) * ROUNDED


def certified_run(detector: Detector, sources: Mapping[str, ImageSource], folder: Path) -> CertifiedRun:
    """The certification in a folder, of this detector on these sets; its score and γ are those that it was certified with.

    Raises RunDirectoryError where there is none, where it is of another detector or of other images, or was changed since; and
    CertoodError where it is probabilistic.
    """
    run = RunDirectory(folder)
    recorded = read_json(run.certification_settings, ("eps", "norm", "method", "sets", "detector"))
    result = read_json(run.certification, ("certificates_sha256",))
    if recorded is None or result is None:
        raise RunDirectoryError(f"{folder} has no finished certification; run `certood certify` first")
    settings = _settings(recorded, run)
    if settings.smoothed:
        raise CertoodError(
            "a certification by smoothing is probabilistic: there is no claim that a verifier could check"
        )
    known = recorded["detector"]
    detector = replace(detector, score=score_of_description(known["score"]), threshold=known["threshold"])
    if changed := differences(known, detector_identity(detector)):
        raise RunDirectoryError(
            f"{run.certificates} is about another detector ({', '.join(changed)} differ); certify again with --overwrite"
        )
    if result["certificates_sha256"] != certificates_hash(run.certificates):
        raise RunDirectoryError(f"{run.certificates} has changed since {run.certification.name} was written")
    records, _ = read_certificates(run.certificates, settings.eps)
    if broken := unsound(records):
        raise RunDirectoryError(f"{run.certificates}: image {broken[0].index} of {broken[0].set!r} contradicts itself")
    return CertifiedRun(detector, settings, records, _matching(sources, recorded["sets"], run))


def _settings(recorded: Mapping[str, Any], run: RunDirectory) -> Settings:
    """The settings of a certification_settings.json."""
    fields = Settings.__dataclass_fields__
    values = {name: value for name, value in recorded.items() if name in fields}
    try:
        smoothing = MedianSmoothing(**values.pop("smoothing"))
        return Settings(**values | {"eps": tuple(values["eps"]), "norm": float(values["norm"]), "smoothing": smoothing})
    except (TypeError, ValueError, KeyError) as error:
        raise RunDirectoryError(f"{run.certification_settings} is damaged: {error}") from error


def _matching(
    sources: Mapping[str, ImageSource], fingerprints: Mapping[str, str], run: RunDirectory
) -> Mapping[str, ImageSource]:
    """The sets that were certified, found by their names; raises RunDirectoryError where one is missing or has other images."""
    for name, fingerprint in fingerprints.items():
        if name not in sources:
            raise RunDirectoryError(f"{run.certificates} has images of {name!r}; name that set with --id or --ood")
        if sources[name].fingerprint != fingerprint:
            raise RunDirectoryError(f"{name!r} has other images than when {run.certificates} was written")
    return sources


def _short(eps: Sequence[float]) -> dict[float, str]:
    """Radii as parts of file names: to six digits, or to all where that would make two the same."""
    short = [f"{one:.6g}" for one in eps]
    return {one: text if short.count(text) == 1 else repr(one) for one, text in zip(eps, short, strict=True)}


def _slugs(names: set[str]) -> dict[str, str]:
    """Names of sets as parts of file names, all different."""
    found: dict[str, str] = {}
    for name in sorted(names):
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "set"
        found[name] = slug if slug not in found.values() else f"{slug}-{len(found)}"
    return found
