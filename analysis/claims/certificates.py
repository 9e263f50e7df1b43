"""Certificates of claims: slopes of our own linear bounds, which the checker has found to prove the claim."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from certood.analysis.bounds import Analysis, Graph, LpBall, analyse
from certood.analysis.bounds.operations.base import Elementwise
from certood.analysis.claims.certified_run import CertifiedRun, Claim
from certood.analysis.claims.conditions import Conditioned
from certood.checking.certificates import TEMPERATURES, ClaimCertificate
from certood.checking.network import Network, Unchecked, read_network

# Images that are bounded together.
BATCH = 32


@dataclass(frozen=True)
class Certified:
    """A claim with its certificate, or why it has none."""

    claim: Claim
    certificate: ClaimCertificate | None
    reason: str = ""


def certificates(run: CertifiedRun, graph: Graph, conditions: Sequence[Conditioned], path: Path) -> list[Certified]:
    """Certificates about the network at `path` of all claims that have a condition; those that the checker does not prove are
    left out, with the reason."""
    try:
        network = read_network(path)
    except Unchecked as error:
        return [Certified(one.claim, None, str(error)) for one in conditions]
    names, nodes = _rectifiers(network), _bends(graph)
    if [graph.nodes[node].shape.numel() for node in nodes] != [size for _, size in names]:
        return [Certified(one.claim, None, "its activations are not those that were bounded") for one in conditions]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = []
    for start in range(0, len(conditions), BATCH):
        part = conditions[start : start + BATCH]
        analysis = _analysed(run, graph, part)
        for place, one in enumerate(part):
            slopes = {name: _slopes(analysis, node, place) for (name, _), node in zip(names, nodes, strict=True)}
            found.append(_proved(run, network, digest, one, slopes))
    return found


def _rectifiers(network: Network) -> list[tuple[str, int]]:
    """Names and sizes of the steps that take slopes, in the order of the file."""
    sizes = {0: 0}
    found = []
    value = [torch.zeros(network.shape).numpy().ravel()]
    for place, placed in enumerate(network.steps, start=1):
        value.append(placed.step.value([value[source] for source in placed.inputs]))
        sizes[place] = value[-1].size
        if placed.step.bends:
            found.append((placed.name, value[-1].size))
    return found


def _bends(graph: Graph) -> list[int]:
    """The nodes that are piecewise linear, in the order of the graph."""
    return [index for index, node in enumerate(graph.nodes) if node.operation.kinks is not None]


def _analysed(run: CertifiedRun, graph: Graph, part: Sequence[Conditioned]) -> Analysis:
    images = torch.stack([torch.from_numpy(one.claim.image) for one in part]).double()
    eps = torch.tensor([one.claim.eps for one in part], dtype=torch.float64)
    return analyse(graph, LpBall(images, eps, run.settings.norm), "crown")


def _slopes(analysis: Analysis, node: int, place: int) -> tuple[float, ...]:
    """The slopes of the lower lines of an activation for one image."""
    operation = analysis.graph.nodes[node].operation
    assert isinstance(operation, Elementwise)
    (source,) = analysis.graph.nodes[node].inputs
    lower, upper = (end[place : place + 1] for end in analysis.boxes[source])
    found: Tensor = operation.lines(lower, upper).lower_slope
    return tuple(found.expand(lower.shape).clamp(0, 1).flatten().tolist())


def _proved(
    run: CertifiedRun,
    network: Network,
    digest: str,
    one: Conditioned,
    slopes: Mapping[str, tuple[float, ...]],
) -> Certified:
    """The certificate of a claim, if the checker proves it."""
    detector, claim = run.detector, one.claim
    assert detector.threshold is not None
    temperature = TEMPERATURES[detector.score.name]
    classes = len(detector.classes)
    certificate = ClaimCertificate(
        network_sha256=digest,
        accepted=claim.accepted,
        threshold=detector.threshold,
        temperature=detector.score.parameters["temperature"] if temperature is None else temperature,
        classes=classes,
        norm=run.settings.record()["norm"],
        radius=claim.eps,
        centre=tuple(claim.image.astype(float).ravel().tolist()),
        weights=one.condition.rows[0][:classes] if claim.accepted else (),
        slopes=dict(slopes),
    )
    margin: Fraction = certificate.margin(network)
    if certificate.holds(margin):
        return Certified(claim, certificate)
    return Certified(claim, None, "the checker's linear bounds are too loose for it")
