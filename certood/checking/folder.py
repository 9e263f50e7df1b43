"""A whole export checked: its files, that they agree with each other, its certificates, and sampled points."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from certood.checking.certificates import TEMPERATURES, ClaimCertificate, Damaged, read_certificate
from certood.checking.network import Network, Unchecked, read_network
from certood.checking.steps import Array
from certood.claims.vnnlib_reading import read_vnnlib
from certood.errors import CertoodError, CheckpointError
from certood.rounding import float32_below, float32_beyond

MANIFEST = "claims.json"
NETWORK = "conditions/network.onnx"
# What float32 may cost, relative to the largest logit, or to γ.
FLOAT32 = 1e-4


class NotProved(CertoodError):
    """Something in an export is not what it says."""

    exit_code = 1


@dataclass
class Outcome:
    """What was found: certificates that hold, claims that have none, sampled points, and everything that is wrong."""

    claims: int = 0
    proved: int = 0
    files: int = 0
    points: int = 0
    network_difference: float = math.nan
    smallest_margin: float = math.inf
    without: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def check_folder(folder: Path, points: int = 8, seed: int = 0) -> Outcome:
    """Check an export; `points` images of every ball are evaluated by onnxruntime, where it is installed.

    Raises NotProved where there is no export, or its claims.json cannot be read.
    """
    content = _manifest(folder)
    found = Outcome(claims=len(content["claims"]))
    found.wrong += _changed_files(folder, content["files"])
    found.files = len(content["files"])
    if not any(claim.get("certificate") for claim in content["claims"]):
        found.without = [f"{claim['name']}: {claim.get('no_certificate')}" for claim in content["claims"]]
        return found
    try:
        network = read_network(folder / NETWORK)
    except (CheckpointError, Unchecked) as error:
        found.wrong.append(str(error))
        return found
    digest = hashlib.sha256((folder / NETWORK).read_bytes()).hexdigest()
    session = _session(folder / NETWORK) if points else None
    random = np.random.default_rng(seed)
    for claim in content["claims"]:
        if not claim.get("certificate"):
            found.without.append(f"{claim['name']}: {claim.get('no_certificate')}")
            continue
        try:
            certificate = read_certificate(folder / claim["certificate"])
            problems = [*_disagreements(content, claim, certificate, digest), *_properties(folder, claim, certificate)]
            margin = certificate.margin(network)
            if not certificate.holds(margin):
                problems.append(f"the bound does not prove it: it is short by {float(-margin):.3g}")
        except (Damaged, ValueError) as error:
            found.wrong.append(f"{claim['name']}: {error}")
            continue
        if session is not None:
            problems += _sampled(found, network, session, certificate, random, points)
        found.wrong += [f"{claim['name']}: {problem}" for problem in problems]
        if not problems:
            found.proved += 1
            found.smallest_margin = min(found.smallest_margin, float(margin))
    return found


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        names = {claim["name"] for claim in content["claims"]}
        if content["format"] != "certood-claims" or len(names) != len(content["claims"]):
            raise ValueError("unknown format, or a claim stands there twice")
        content["files"].items()
        content["detector"].items()
    except OSError as error:
        raise NotProved(
            f"cannot read {folder / MANIFEST}: {error.strerror}; name a folder of `certood export`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotProved(
            f"{folder / MANIFEST} is not that of an export ({error}); name a folder of `certood export`"
        ) from error
    return content


def _changed_files(folder: Path, digests: Mapping[str, str]) -> Iterator[str]:
    """Files that are missing or others than were exported."""
    for name, digest in digests.items():
        path = folder / name
        if ".." in path.parts or not path.is_file():
            yield f"{name} is missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{name} was changed: its SHA-256 is another than claims.json has"


def _disagreements(
    content: Mapping[str, Any], claim: Mapping[str, Any], certificate: ClaimCertificate, digest: str
) -> Iterator[str]:
    """What a certificate says otherwise than claims.json and the network's file."""
    detector = content["detector"]
    score = detector["score"]
    fixed = TEMPERATURES.get(score["name"], math.nan)
    stated = {
        "network_sha256": digest,
        "accepted": claim["accepted"],
        "threshold": detector["threshold"],
        "temperature": score.get("temperature") if fixed is None else fixed,
        "classes": len(detector["classes"]),
        "norm": content["norm"],
        "radius": claim["eps"],
    }
    for name, value in stated.items():
        if getattr(certificate, name) != value:
            yield f"the certificate's {name} is {getattr(certificate, name)!r}, claims.json or the network have {value!r}"


def _properties(folder: Path, claim: Mapping[str, Any], certificate: ClaimCertificate) -> Iterator[str]:
    """What the properties in VNN-LIB 1.0 say that the certificate does not: boxes must lie in its ball, γ must be its own."""
    lower, upper = certificate.ball.box
    for kind in ("scores", "conditions"):
        name = f"{kind}/vnnlib-1.0/{claim['name']}.vnnlib"
        try:
            described = read_vnnlib((folder / name).read_text("utf-8"), name)
        except (OSError, UnicodeDecodeError, CertoodError) as error:
            yield f"{name} cannot be read: {error}"
            continue
        for case in described.cases:
            if len(case.lower) != len(lower) or not bool(((case.lower >= lower) & (case.upper <= upper)).all()):
                yield f"the box in {name} is not inside the certificate's ball"
                break
        if kind == "scores":
            accepted, threshold = certificate.accepted, certificate.threshold
            row, bound = (-1.0, -float32_beyond(threshold)) if accepted else (1.0, float32_below(threshold))
            said = [(case.rows.tolist(), case.bounds.tolist()) for case in described.cases]
            if said != [([[row]], [bound])]:
                yield f"the threshold in {name} is not the certificate's"


def _session(path: Path) -> Any:
    """onnxruntime on a file, None where it is not installed."""
    try:
        import onnxruntime  # noqa: PLC0415 (optional)
    except ImportError:
        return None
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _sampled(
    found: Outcome,
    network: Network,
    session: Any,
    certificate: ClaimCertificate,
    random: np.random.Generator,
    points: int,
) -> Iterator[str]:
    """What points of a ball, evaluated by onnxruntime, contradict: the claim, or how the checker reads the network."""
    (entry,) = session.get_inputs()
    for point in _points(certificate, random, points):
        image = point.astype(np.float32)
        logits = session.run(None, {entry.name: image.reshape(1, *network.shape)})[0].ravel().astype(np.float64)
        own = network.value(image.astype(np.float64))
        difference = float(np.abs(own - logits).max() / max(np.abs(logits).max(), 1e-30))
        found.network_difference = max(
            difference, 0 if math.isnan(found.network_difference) else found.network_difference
        )
        found.points += 1
        if not difference <= FLOAT32:
            yield f"the checker reads the network otherwise than onnxruntime, by {difference:.1e}"
            return
        score, level = _score(logits[: certificate.classes], certificate.temperature), certificate.threshold
        excess = score - level if certificate.accepted else level - score
        if excess > FLOAT32 * (1 + abs(level)):
            yield f"onnxruntime finds the score {score:.6g} at a point of the ball, γ is {level:.6g}"
            return


def _score(logits: Array, temperature: float) -> float:
    """−T·logsumexp(f/T), rounded as it comes."""
    top = logits.max()
    if not temperature:
        return -float(top)
    return -float(top + temperature * np.log(np.exp((logits - top) / temperature).sum()))


def _points(certificate: ClaimCertificate, random: np.random.Generator, count: int) -> Iterator[Array]:
    """Points of a ball: its centre, and corners and inner points of a box inside it."""
    centre = np.array(certificate.centre)
    inside = {"inf": 1.0, "2": math.sqrt(len(centre)), "1": float(len(centre))}[certificate.norm]
    half = certificate.radius / inside
    yield centre
    for number in range(count - 1):
        change = random.uniform(-half, half, len(centre))
        yield np.clip(centre + (np.sign(change) * half if number % 2 else change), 0, 1)
