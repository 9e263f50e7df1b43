"""A whole export checked: its files, that they agree with each other, its certificates, and sampled points."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certood.checking.certificates import ClaimCertificate, Damaged, decision_of, is_number, read_certificate
from certood.checking.linear_bounds import half_width
from certood.checking.network import Network
from certood.checking.network_file import read_network
from certood.checking.properties import INSTANCES, kinds_of, property_file, wrong_instances, wrong_properties
from certood.checking.reading import Unchecked
from certood.checking.steps import Array
from certood.errors import CertoodError, CheckpointError

MANIFEST = "claims.json"
VERSION = 1
FOLDERS = ("scores", "conditions", "certificates")
SCORES = "scores/network.onnx"
NETWORK = "conditions/network.onnx"
# Names of claims are names of files.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
# What float32 may cost, relative to what the logits are sums of, to the score, or to γ.
FLOAT32 = 1e-4


class NotProved(CertoodError):
    """Something in an export is not what it says."""

    exit_code = 1


@dataclass
class Outcome:
    """What was found: certificates that hold, claims that have none and why, sampled points, and everything that is wrong."""

    claims: int = 0
    proved: int = 0
    files: int = 0
    points: int = 0
    network_difference: float = math.nan
    smallest_margin: float = math.inf
    without: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Networks:
    """The network of the certificates with its SHA-256, and both networks in onnxruntime, where points are to be sampled."""

    network: Network
    digest: str
    sessions: Sequence[Any]


def check_folder(folder: Path, points: int = 8, seed: int = 0) -> Outcome:
    """Check an export; `points` images of every ball are evaluated by onnxruntime, where it is installed.

    Raises CertoodError where there is no export, and NotProved where its claims.json is damaged.
    """
    content = _manifest(folder)
    claims = content["claims"]
    found = Outcome(claims=len(claims), files=len(content["files"]))
    found.wrong += [*_changed_files(folder, content), *wrong_instances(folder, claims)]
    for claim in claims:
        if claim["certificate"] is None:
            found.without.append((claim["name"], claim["no_certificate"]))
            with _told(found, claim) as problems:
                problems.extend(wrong_properties(folder, content, claim, None, None))
    try:
        networks = _networks(folder, content, points)
    except (CheckpointError, Unchecked) as error:
        found.wrong.append(str(error))
        return found
    random = np.random.default_rng(seed)
    for claim in claims:
        # That a certificate is missing was said with the files.
        if networks is not None and claim["certificate"] and (folder / claim["certificate"]).is_file():
            with _told(found, claim) as problems:
                margin = _margin(problems, found, folder, content, claim, networks, random, points)
            if not problems:
                found.proved += 1
                found.smallest_margin = min(found.smallest_margin, margin)
    return found


@contextmanager
def _told(found: Outcome, claim: Mapping[str, Any]) -> Iterator[list[str]]:
    """A list of what is wrong with a claim, all of which is told; an error that ends the check is the last of it."""
    problems: list[str] = []
    try:
        yield problems
    except (Damaged, ValueError, ArithmeticError) as error:
        problems.append(str(error) or type(error).__name__)
    found.wrong += [f"{claim['name']}: {problem}" for problem in problems]


def _networks(folder: Path, content: Mapping[str, Any], points: int) -> Networks | None:
    """The networks of an export, None where there is no certificate.

    Raises CheckpointError or Unchecked where one of them cannot be read.
    """
    certified = any(claim["certificate"] for claim in content["claims"])
    conditioned = any(claim["condition"] is not None for claim in content["claims"])
    network = read_network(folder / NETWORK) if certified else None
    sessions = tuple(_session(folder / name) for name in ((NETWORK, SCORES) if conditioned else (SCORES,)) if points)
    if network is None:
        return None
    if list(network.shape) != content["detector"]["input_shape"]:
        shapes = f"{list(network.shape)}, those of the detector are {content['detector']['input_shape']}"
        raise CheckpointError(f"{NETWORK} takes images of {shapes}")
    return Networks(network, hashlib.sha256((folder / NETWORK).read_bytes()).hexdigest(), sessions)


def _margin(
    problems: list[str],
    found: Outcome,
    folder: Path,
    content: Mapping[str, Any],
    claim: Mapping[str, Any],
    networks: Networks,
    random: np.random.Generator,
    points: int,
) -> float:
    """The margin by which a certificate proves its claim; what is wrong is added to `problems`, sampled points to `found`."""
    network = networks.network
    certificate = read_certificate(folder / claim["certificate"])
    certificate.require_fits(network)
    problems.extend(_disagreements(content, claim, certificate, networks.digest))
    problems.extend(wrong_properties(folder, content, claim, certificate.ball, network.outputs))
    margin = certificate.margin(network)
    if not certificate.holds(margin):
        problems.append(f"the bound does not prove it: it is short by {float(-margin):.3g}")
    if networks.sessions and all(networks.sessions):
        score = content["detector"]["score"]
        problems.extend(_sampled(found, network, networks.sessions, certificate, score, random, points))
    return float(margin)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        _require_form(content)
    except OSError as error:
        raise CertoodError(
            f"cannot read {folder / MANIFEST}: {error.strerror}; name a folder of `certood export`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotProved(
            f"{folder / MANIFEST} is not that of an export ({error}); name a folder of `certood export`"
        ) from error
    return content


def _require_form(content: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError where claims.json lacks what is read of it, or says it otherwise."""
    if content["format"] != "certood-claims" or content["version"] != VERSION:
        raise ValueError(f"expected certood-claims of version {VERSION}")
    detector, claims, files = content["detector"], content["claims"], content["files"]
    _require_shown(detector["score"]["name"])
    _require_number(detector["threshold"])
    _require(detector["classes"], list)
    if not detector["classes"]:
        raise ValueError("there is no class")
    if content["norm"] not in ("inf", "2", "1"):
        raise ValueError(f"expected the norm inf, 2 or 1, found {content['norm']!r:.60}")
    shape = detector["input_shape"]
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)):
        raise ValueError(f"expected the shape [C, H, W] of images, found {shape!r:.60}")
    for name, digest in files.items():
        _require(digest, str)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name} does not lie in the folder")
    for claim in claims:
        _require(claim["name"], str)
        _require(claim["accepted"], bool)
        _require_number(claim["eps"])
        _require(claim["condition"], str, type(None))
        if claim["certificate"] is None:
            _require_shown(claim["no_certificate"])
        if not NAME.fullmatch(claim["name"]):
            raise ValueError(f"{claim['name']!r:.60} is no name of a claim")
        if claim["certificate"] not in (None, f"certificates/{claim['name']}.json"):
            raise ValueError(f"{claim['certificate']!r:.60} is no certificate of the claim {claim['name']}")
        if claim["certificate"] and claim["condition"] is None:
            raise ValueError(f"the claim {claim['name']} has a certificate, and no condition")
    names = [claim["name"] for claim in claims]
    if not names or len(set(names)) != len(names):
        raise ValueError("there is no claim, or one stands there twice")


def _require(value: object, *kinds: type) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, found {value!r:.60}")


def _require_shown(value: object) -> None:
    """Raise TypeError or ValueError where a text is none, or has characters that cannot be printed."""
    _require(value, str)
    if not str(value).isprintable():
        raise ValueError(f"{value!r:.60} has characters that cannot be printed")


def _require_number(value: object) -> None:
    if not is_number(value):
        raise TypeError(f"expected a finite number, found {value!r:.60}")


def _changed_files(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Files that are missing, were not exported, or are others than were exported."""
    digests = content["files"]
    present = {
        path.relative_to(folder).as_posix() for kind in FOLDERS for path in (folder / kind).rglob("*") if path.is_file()
    }
    needed = set(_files(content["claims"]))
    yield from (f"{name} has no SHA-256 in claims.json" for name in sorted((present | needed) - digests.keys()))
    yield from (f"{name} belongs to no claim" for name in sorted((present | digests.keys()) - needed))
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{name} was changed: its SHA-256 is another than claims.json has"


def _files(claims: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The files of an export with these claims."""
    for claim in claims:
        if claim["certificate"]:
            yield claim["certificate"]
        for kind in kinds_of(claim):
            yield f"{kind}/network.onnx"
            for version, instances in INSTANCES.items():
                yield f"{kind}/{instances}"
                yield property_file(kind, version, claim["name"])


def _disagreements(
    content: Mapping[str, Any], claim: Mapping[str, Any], certificate: ClaimCertificate, digest: str
) -> Iterator[str]:
    """What a certificate says otherwise than claims.json and the network's file."""
    decision = decision_of(content["detector"], accepted=claim["accepted"])
    if decision is None:
        yield f"there are no certificates of the score {content['detector']['score']['name']}"
        return
    stated = {
        "network_sha256": digest,
        "accepted": claim["accepted"],
        **decision._asdict(),
        "norm": content["norm"],
        "radius": claim["eps"],
    }
    for name, value in stated.items():
        if getattr(certificate, name) != value:
            yield f"the certificate's {name} is {getattr(certificate, name)!r}, claims.json or the network have {value!r}"


def _session(path: Path) -> Any:
    """onnxruntime on a file, None where it is not installed; raises CheckpointError where it does not read the file."""
    try:
        import onnxruntime  # noqa: PLC0415 (optional)
    except ImportError:
        return None
    if not path.is_file():
        raise CheckpointError(f"cannot read {path}: it is missing")
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise CheckpointError(f"onnxruntime cannot read {path}: {' '.join(str(error).split())}") from error


def _sampled(
    found: Outcome,
    network: Network,
    sessions: Sequence[Any],
    certificate: ClaimCertificate,
    described: Mapping[str, Any],
    random: np.random.Generator,
    points: int,
) -> Iterator[str]:
    """What points of a ball, evaluated by onnxruntime, contradict: the claim, how the checker reads the network, or that the
    network of scores is the network of logits with the score that is described."""
    for point in _points(certificate, random, points):
        image = point.astype(np.float32)
        try:
            logits, scored = (_outputs(session, image.reshape(1, *network.shape)) for session in sessions)
        except Exception as error:  # onnxruntime's errors have no common base
            yield f"onnxruntime cannot evaluate a network: {' '.join(str(error).split())}"
            return
        if len(logits) != network.outputs or len(scored) != 1:
            yield f"the networks have {len(logits)} logits and {len(scored)} scores; expected {network.outputs} and 1"
            return
        values = network.values(image.astype(np.float64))
        difference = float(np.abs(values[-1] - logits).max() / max(network.size(values), 1e-30))
        found.network_difference = max(
            difference, 0 if math.isnan(found.network_difference) else found.network_difference
        )
        found.points += 1
        if not difference <= FLOAT32:
            yield f"the checker reads the network otherwise than onnxruntime, by {difference:.1e}"
            return
        score, level = _score(logits[: certificate.classes], certificate.temperature), certificate.threshold
        least, most = _enclosure(score, described)
        if not least - _slack(least) <= float(scored[0]) <= most + _slack(most):
            wanted = f"{least:.6g}" if least == most else f"one from {least:.6g} to {most:.6g}"
            yield f"{SCORES} gives the score {scored[0]:.6g} where the logits have {wanted}"
            return
        if (score - level if certificate.accepted else level - score) > _slack(level):
            yield f"onnxruntime finds the score {score:.6g} at a point of the ball, γ is {level:.6g}"
            return


def _outputs(session: Any, image: NDArray[np.float32]) -> Array:
    """What onnxruntime finds for an image (1, C, H, W), flat."""
    (entry,) = session.get_inputs()
    found: Array = session.run(None, {entry.name: image})[0].ravel().astype(np.float64)
    return found


def _score(logits: Array, temperature: float) -> float:
    """−T·logsumexp(f/T), rounded as it comes."""
    top = logits.max()
    if not temperature:
        return -float(top)
    with np.errstate(over="ignore"):
        return -float(top + temperature * np.log(np.exp((logits - top) / temperature).sum()))


def _enclosure(score: float, described: Mapping[str, Any]) -> tuple[float, float]:
    """Between which values the detector's score lies where that of the certificate is known."""
    if described["name"] != "guarded":
        return score, score
    least = score / described["sigma"]
    return least, least + described["alpha"]


def _slack(value: float) -> float:
    """What float32 may cost of a score near this value."""
    return FLOAT32 * (1 + abs(value))


def _points(certificate: ClaimCertificate, random: np.random.Generator, count: int) -> Iterator[Array]:
    """Points of a ball: its centre, and corners and inner points of a box inside it."""
    centre = np.array(certificate.centre)
    # Nothing is further away than 1.
    half = min(half_width(float(certificate.norm), certificate.radius, len(centre)), 1)
    yield centre
    for number in range(count - 1):
        change = random.uniform(-half, half, len(centre))
        yield np.clip(centre + (np.sign(change) * half if number % 2 else change), 0, 1)
