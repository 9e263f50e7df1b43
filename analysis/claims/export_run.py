"""`certood export`: the claims of a certification, in a folder that says by itself what they are about.

    claims.json          every claim, what is exported of it, and the SHA-256 of every file
    scores/              network.onnx from image to score, and a property for every claim
    conditions/          network.onnx from image to logits (of a guarded detector its guard's output), and a sufficient condition
                         for every claim that has one
    certificates/        a proof of every claim that `certood check` verifies

The first two folders are laid out as the competitions' are: instances.csv names network, property and seconds.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certood.analysis.bounds import Graph, capture
from certood.analysis.claims.certificates import Certified, certificates
from certood.analysis.claims.certified_run import CertifiedRun, Claim
from certood.analysis.claims.conditions import Conditioned, conditioned, has_condition
from certood.analysis.claims.networks import (
    Comparison,
    Scored,
    compared,
    require_exporters,
    scored,
    write_onnx,
)
from certood.checking.certificates import SCORES
from certood.claims.properties import Counterexamples
from certood.claims.vnnlib import vnnlib_1, vnnlib_2
from certood.errors import CannotCertify, CertoodError, RunDirectoryError
from certood.rounding import float32_below, float32_beyond
from certood.runs.identity import detector_identity, versions

FORMAT = "certood-claims"
MANIFEST = "claims.json"
VERSIONS: Mapping[str, Callable[[Counterexamples, Sequence[str]], str]] = {"1.0": vnnlib_1, "2.0": vnnlib_2}
# Seconds that instances.csv allows a verifier.
TIMEOUT = 300
# Random images, and corners of every box, at which files are compared with the module.
RANDOM_IMAGES = 32
CORNERS = 4


@dataclass
class Exported:
    """What was written: entries of claims.json, comparisons of the networks, and conditions with their proofs."""

    folder: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    networks: dict[str, Comparison] = field(default_factory=dict)
    conditions: list[Conditioned] = field(default_factory=list)
    certificates: list[Certified] = field(default_factory=list)


def export_claims(run: CertifiedRun, out: Path, *, limit: int | None = None, overwrite: bool = False) -> Exported:
    """Write the claims of at most `limit` images a set to the folder `out`, all at once or not at all.

    Raises CertoodError where a package is missing, the run certifies nothing, or the network cannot be written; RunDirectoryError
    where `out` holds anything that is not to be replaced.
    """
    require_exporters()
    if limit is not None and limit < 1:
        raise CertoodError(f"expected a limit of at least 1 image a set, got {limit}")
    claims = list(run.claims(limit))
    if not claims:
        raise CertoodError("no decision is certified at any of the radii: there is no claim to export")
    with _folder(out, overwrite=overwrite) as folder:
        found = Exported(out)
        found.networks["scores/network.onnx"] = _scores(run, claims, folder / "scores")
        graph = _graph(run) if has_condition(run, claims[0]) else None
        found.conditions = [] if graph is None else conditioned(run, graph, claims)
        if graph is not None and found.conditions:
            found.networks["conditions/network.onnx"] = _conditions(
                run, claims, found.conditions, folder / "conditions"
            )
            found.certificates = certificates(run, graph, found.conditions, folder / "conditions" / "network.onnx")
            _write_certificates(found.certificates, folder)
        found.entries = [_entry(claim, found) for claim in claims]
        _write_manifest(run, found, folder)
    return found


def _graph(run: CertifiedRun) -> Graph | None:
    """The network that decides as our engine reads it; None where it does not."""
    try:
        return capture(run.part[0], torch.zeros(1, *run.detector.input_shape))
    except CannotCertify:
        return None


def _scores(run: CertifiedRun, claims: Sequence[Claim], folder: Path) -> Comparison:
    """The network with its score, and one property a claim."""
    detector = run.detector
    probes = _probes(claims)
    network = scored(detector.model, detector.output_score, detector.pixels(probes[:2]))
    comparison = _network(network, Scored(detector.model, detector.output_score), run, probes, folder)
    assert detector.threshold is not None
    above, below = float32_beyond(detector.threshold), float32_below(detector.threshold)
    for claim in claims:
        row = ((-1.0,), -above) if claim.accepted else ((1.0,), below)
        says = f"S(x) {'<=' if claim.accepted else '>'} γ = {detector.threshold!r}, S the score {detector.score.label}"
        exact = f"counterexamples have S {'>=' if claim.accepted else '<='} {above if claim.accepted else below!r}"
        _properties(folder, claim, (row,), [says, f"{exact}, the next number of float32"])
    _instances(folder, claims)
    return comparison


def _conditions(
    run: CertifiedRun, claims: Sequence[Claim], conditions: Sequence[Conditioned], folder: Path
) -> Comparison:
    """The network that decides to its logits, and the condition of every claim that has one."""
    comparison = _network(run.part[0], run.part[0], run, _probes(claims), folder)
    for one in conditions:
        negated = zip(one.condition.rows, one.condition.constants, strict=True)
        rows = tuple((row, -constant) for row, constant in negated)
        says = [
            f"sufficient for S(x) {'<=' if one.claim.accepted else '>'} γ = {run.detector.threshold!r}: {one.condition.formula}",
            "a counterexample refutes this condition only, not the claim",
        ]
        _properties(folder, one.claim, rows, says)
    _instances(folder, [one.claim for one in conditions])
    return comparison


def _write_certificates(certificates: Sequence[Certified], folder: Path) -> None:
    (folder / "certificates").mkdir()
    for one in certificates:
        if one.certificate is not None:
            (folder / _certificate_path(one.claim)).write_text(one.certificate.text(), "utf-8")


def _certificate_path(claim: Claim) -> str:
    return f"certificates/{claim.name}.json"


def _network(form: nn.Module, module: nn.Module, run: CertifiedRun, probes: Tensor, folder: Path) -> Comparison:
    """Write a network, and compare the file with the module of which it is another form, at images (N, C, H, W)."""
    folder.mkdir()
    path = folder / "network.onnx"
    write_onnx(form, run.detector.input_shape, path)
    return compared(module, probes, path)


def _probes(claims: Sequence[Claim]) -> Tensor:
    """Random images, and of every claim's box the two extreme corners and some random ones."""
    random = np.random.default_rng(0)
    found = [random.random(claims[0].image.shape, dtype=np.float32) for _ in range(RANDOM_IMAGES)]
    for claim in claims:
        found += [claim.lower, claim.upper]
        for _ in range(CORNERS - 2):
            found.append(np.where(random.random(claim.image.shape) < 0.5, claim.lower, claim.upper))
    return torch.from_numpy(np.stack(found))


def _properties(
    folder: Path, claim: Claim, rows: tuple[tuple[tuple[float, ...], float], ...], says: Sequence[str]
) -> None:
    """The same property in both versions of VNN-LIB."""
    described = Counterexamples(claim.lower[None], claim.upper[None], rows)
    record, decision = claim.record, "accepted" if claim.accepted else "rejected"
    comment = [
        f"image {record.index} of {record.set}, {decision}, certified on the ball of radius {claim.eps!r} (norm {claim.norm:g})",
        f"this box: {claim.weaker}",
        *says,
        "unsat: it holds on this box",
    ]
    for version, write in VERSIONS.items():
        place = folder / f"vnnlib-{version}"
        place.mkdir(exist_ok=True)
        (place / f"{claim.name}.vnnlib").write_text(write(described, comment), "utf-8")


def _instances(folder: Path, claims: Iterable[Claim]) -> None:
    """instances.csv for the properties of version 1.0, as the competitions have it, and one for those of version 2.0."""
    names = [claim.name for claim in claims]
    for version, file in (("1.0", "instances.csv"), ("2.0", "instances-2.0.csv")):
        lines = [f"network.onnx,vnnlib-{version}/{name}.vnnlib,{TIMEOUT}\n" for name in names]
        (folder / file).write_text("".join(lines), "utf-8")


def _entry(claim: Claim, found: Exported) -> dict[str, Any]:
    """What claims.json says of a claim."""
    own = next((one for one in found.conditions if one.claim is claim), None)
    proof = next((one for one in found.certificates if one.claim is claim), None)
    reason = f"certificates are for the scores {SCORES}" if proof is None else proof.reason
    written = proof is not None and proof.certificate is not None
    return {
        "name": claim.name,
        "set": claim.record.set,
        "kind": claim.record.kind,
        "index": claim.record.index,
        "accepted": claim.accepted,
        "score": claim.record.score,
        "eps": claim.eps,
        "exported_box": claim.weaker,
        "condition": None if own is None else own.condition.formula,
        "condition_proved": None if own is None else own.proved,
        "certificate": _certificate_path(claim) if written else None,
        "no_certificate": None if written else reason,
    }


def _write_manifest(run: CertifiedRun, found: Exported, folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "format": FORMAT,
        "version": 1,
        "detector": detector_identity(run.detector),
        "norm": run.settings.record()["norm"],
        "method": run.settings.method,
        "versions": versions(),
        "networks": {name: asdict(comparison) for name, comparison in found.networks.items()},
        "claims": found.entries,
        "files": {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


@contextlib.contextmanager
def _folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A hidden folder that takes the place of `out` at the end; nothing is left of it after an error."""
    if out.exists():
        _require_ours(out)
        if not overwrite:
            raise RunDirectoryError(
                f"{out} holds exported claims; replace them with --overwrite, or choose another --out"
            )
    hidden = out.with_name(f".{out.name}.{os.getpid()}.partial")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        hidden.mkdir(parents=True)
        yield hidden
        if out.exists():
            out.replace(old)
        hidden.replace(out)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _require_ours(out: Path) -> None:
    """Raise RunDirectoryError unless a folder is empty or has an export's files and no others."""
    if not out.is_dir():
        raise RunDirectoryError(f"cannot write {out}: it is a file; name a folder")
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    if not present:
        out.rmdir()
        return
    try:
        known = set(json.loads((out / MANIFEST).read_text("utf-8"))["files"]) | {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    if not present <= known:
        stranger = sorted(present - known)[0]
        raise RunDirectoryError(f"{out} holds {stranger}, which no export wrote; choose another --out")
