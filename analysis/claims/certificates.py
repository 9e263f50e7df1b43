"""Certificates of claims: slopes of our own linear bounds, which the checker has found to prove the claim."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds import Analysis, Graph, LpBall, analyse, logits_of
from certood.analysis.bounds.linear.choices import Choices
from certood.analysis.bounds.operations.base import Elementwise
from certood.analysis.claims.certified_run import CertifiedRun, Claim
from certood.analysis.claims.conditions import Conditioned
from certood.checking.certificates import TEMPERATURES, ClaimCertificate
from certood.checking.network import Network, Unchecked, read_network
from certood.detector import Detector
from certood.rounding import dyadic_simplex
from certood.scores import Score

# Images that are bounded together.
BATCH = 32
# Of the ascent on slopes.
STEPS = 60
LEARNING_RATE = 0.1

Named = Mapping[str, tuple[float, ...]]


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

            def better(analysis: Analysis = analysis, one: Conditioned = one, place: int = place) -> Better:
                return _optimised(run, analysis, one, place)

            own = dict(zip(nodes, (name for name, _ in names), strict=True))
            found.append(_proved(run, network, digest, one, slopes, own, better))
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


@dataclass(frozen=True)
class Better:
    """Slopes of every activation node for the last linear bound, and weights (K,) of the tangent of an accepted image."""

    slopes: Mapping[int, tuple[float, ...]]
    weights: tuple[float, ...]


def _optimised(run: CertifiedRun, analysis: Analysis, one: Conditioned, place: int) -> Better:
    """What gradient ascent finds better for the one linear bound that is to prove a claim: its slopes, and those of an accepted
    image also the tangent of logsumexp. Of a rejected image the bound is the best chord."""
    graph, detector = analysis.graph, run.detector
    last, classes = len(graph.nodes) - 1, len(detector.classes)
    start = torch.tensor(one.condition.rows[0][:classes], dtype=torch.float64).clamp_min(1e-9).log().requires_grad_()
    temperature, missing = _temperature(detector), graph.outputs - classes
    fixed = None if one.claim.accepted else _best_chord(detector.output_score, analysis, place)
    ball = LpBall(analysis.ball.centre[place : place + 1], one.claim.eps, run.settings.norm)
    alone = analyse(graph, ball, "crown")
    logits = alone.references[last][0]
    choices, best, kept = Choices(), -math.inf, Better({}, ())
    for step in range(STEPS):
        with torch.enable_grad():
            weights = start.softmax(0)
            row = F.pad(weights, (0, missing)) if fixed is None else fixed
            reached, constant = alone.backward.to_image(last, row[None, None], choices=choices)
            value = (ball.least(reached) + constant).sum() + (row * logits).sum()
            if fixed is None:
                value = value - temperature * (weights * start.log_softmax(0)).sum()
        slopes = choices.slopes
        if float(value.detach()) > best:
            best = float(value.detach())
            flat = {node: tuple(slope.detach().flatten().tolist()) for node, slope in slopes.items()}
            kept = Better(flat, tuple(map(float, dyadic_simplex(weights.tolist()))) if fixed is None else ())
        if step == 0:
            ascent = torch.optim.Adam([*slopes.values(), start], lr=LEARNING_RATE, maximize=True)
        ascent.zero_grad()
        value.backward()
        ascent.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return kept


def _best_chord(score: Score, analysis: Analysis, place: int) -> Tensor:
    """The linear function of the logits (K,) that bounds the score of one image best from below."""
    logits = logits_of(analysis)
    found = score.rows(logits, "lower")
    margins = logits.lower_rows(found.rows[:, 0]) + found.constants[:, 0]
    return found.rows[place, 0, margins[place].argmax()]


def _temperature(detector: Detector) -> float:
    fixed = TEMPERATURES[detector.score.name]
    return float(detector.score.parameters["temperature"]) if fixed is None else fixed


def _proved(
    run: CertifiedRun,
    network: Network,
    digest: str,
    one: Conditioned,
    slopes: Named,
    names: Mapping[int, str],
    better: Callable[[], Better],
) -> Certified:
    """The certificate of a claim, if the checker proves it with these slopes, or with better ones for the last bound."""
    detector, claim = run.detector, one.claim
    assert detector.threshold is not None
    classes = len(detector.classes)
    certificate = ClaimCertificate(
        network_sha256=digest,
        accepted=claim.accepted,
        threshold=detector.threshold,
        temperature=_temperature(detector),
        classes=classes,
        norm=run.settings.record()["norm"],
        radius=claim.eps,
        centre=tuple(claim.image.astype(float).ravel().tolist()),
        weights=one.condition.rows[0][:classes] if claim.accepted else (),
        slopes=dict(slopes),
    )
    if certificate.holds(certificate.margin(network)):
        return Certified(claim, certificate)
    found = better()
    last_slopes = {names[node]: values for node, values in found.slopes.items()}
    certificate = replace(certificate, last_slopes=last_slopes, weights=found.weights)
    if certificate.holds(certificate.margin(network)):
        return Certified(claim, certificate)
    return Certified(claim, None, "the checker's linear bounds are too loose")
