"""Certificates of claims: slopes of our own linear bounds, which the checker has found to prove the claim."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds import Analysis, Graph, LpBall, analyse, logits_of
from certood.analysis.bounds.linear.choices import Choices
from certood.analysis.bounds.operations.activations import Activation
from certood.analysis.claims.certified_run import CertifiedRun, Claim
from certood.analysis.claims.conditions import Conditioned
from certood.checking.certificates import ClaimCertificate, Decision, decision_of
from certood.checking.linear_bounds import Ball, LinearBounds
from certood.checking.network import Network
from certood.checking.network_file import read_network
from certood.checking.reading import Unchecked
from certood.checking.steps import Array, Box
from certood.rounding import dyadic_simplex
from certood.scores import Score

# Of the ascent on slopes.
STEPS = 60
LEARNING_RATE = 0.1


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
        return [Certified(one.claim, None, " ".join(str(error).split())) for one in conditions]
    names, digest = _adjustable(network, graph), hashlib.sha256(path.read_bytes()).hexdigest()
    return [_proved(run, graph, network, digest, names, one) for one in conditions]


class CrownBounds(LinearBounds):
    """The checker's bounds with CROWN's slopes: 1 where a ReLU reaches further up than down, 0 elsewhere."""

    def __init__(self, network: Network, ball: Ball) -> None:
        super().__init__(network, ball, {})

    def slopes_of(self, name: str, box: Box) -> Array:
        """1 or 0 for every number of a box."""
        return (box.upper > -box.lower).astype(np.float64)


# How many ReLU the checker reads an activation as, where ours are not one for one.
RECTIFIERS: Mapping[str, Callable[[Activation], int]] = {
    "relu": lambda activation: 1,
    "leaky_relu": lambda activation: 1,
    "abs": lambda activation: 2,
    "clamp": lambda activation: len(activation.kinks or ()),
}


def _adjustable(network: Network, graph: Graph) -> dict[int, str]:
    """The nodes whose slopes our engine can improve, with the name of the ReLU that the checker reads each as; none where the
    activations of both do not correspond."""
    values = network.values(np.zeros(network.shape))
    steps = [(placed.name, len(values[place])) for place, placed in enumerate(network.steps, 1) if placed.step.bends]
    found: dict[int, str] = {}
    sizes: list[int] = []
    for index, node in enumerate(graph.nodes):
        activation = node.operation
        if not isinstance(activation, Activation) or activation.name not in RECTIFIERS:
            continue
        if activation.adjustable and len(sizes) < len(steps):
            found[index] = steps[len(sizes)][0]
        sizes += [node.shape.numel()] * RECTIFIERS[activation.name](activation)
    return found if sizes == [size for _, size in steps] else {}


@dataclass(frozen=True)
class Better:
    """Slopes of every activation node for the last linear bound, and weights (K,) of the tangent of an accepted image."""

    slopes: Mapping[int, tuple[float, ...]]
    weights: tuple[float, ...]


def _optimised(run: CertifiedRun, graph: Graph, one: Conditioned) -> Better:
    """What gradient ascent finds better for the one linear bound that is to prove a claim: its slopes, and those of an accepted
    image also the tangent of logsumexp. Of a rejected image the bound is the best chord."""
    last, (temperature, classes, _) = len(graph.nodes) - 1, _decision(run, one.claim)
    start = torch.tensor(one.condition.rows[0][:classes], dtype=torch.float64).clamp_min(1e-9).log().requires_grad_()
    missing = graph.outputs - classes
    ball = LpBall(torch.from_numpy(one.claim.image)[None].double(), one.claim.eps, run.settings.norm)
    alone = analyse(graph, ball, "crown")
    fixed = None if one.claim.accepted else _best_chord(run.part[1], alone)
    logits = alone.references[last][0]
    choices, best = Choices(), -math.inf
    kept = Better({}, one.condition.rows[0][:classes] if fixed is None else ())
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
        if not value.requires_grad:
            break  # no slope to choose, and no tangent
        if step == 0:
            ascent = torch.optim.Adam([*slopes.values(), start], lr=LEARNING_RATE, maximize=True)
        ascent.zero_grad()
        value.backward()
        ascent.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return kept


def _best_chord(score: Score, analysis: Analysis) -> Tensor:
    """The linear function of the logits (K,) that bounds the score of the image best from below."""
    logits = logits_of(analysis)
    found = score.rows(logits, "lower")
    margins = logits.lower_rows(found.rows[:, 0]) + found.constants[:, 0]
    return found.rows[0, 0, margins[0].argmax()]


def _decision(run: CertifiedRun, claim: Claim) -> Decision:
    """What decides a claim whose score has certificates."""
    detector = run.detector
    described = {
        "score": detector.score.description,
        "threshold": detector.threshold,
        "classes": detector.classes,
    }
    found = decision_of(described, accepted=claim.accepted)
    assert found is not None
    return found


def _proved(
    run: CertifiedRun, graph: Graph, network: Network, digest: str, names: Mapping[int, str], one: Conditioned
) -> Certified:
    """The certificate of a claim, if the checker proves it with CROWN's slopes, or with better ones for the last bound."""
    claim, decision = one.claim, _decision(run, one.claim)
    certificate = ClaimCertificate(
        network_sha256=digest,
        accepted=claim.accepted,
        **decision._asdict(),
        norm=run.settings.record()["norm"],
        radius=claim.eps,
        centre=tuple(claim.image.astype(float).ravel().tolist()),
        weights=one.condition.rows[0][: decision.classes] if claim.accepted else (),
        slopes={},
    )
    slopes = CrownBounds(network, certificate.ball).slopes
    certificate = replace(certificate, slopes={name: tuple(values.tolist()) for name, values in slopes.items()})
    if certificate.holds(certificate.margin(network)):
        return Certified(claim, certificate)
    found = _optimised(run, graph, one)
    last_slopes = {names[node]: values for node, values in found.slopes.items() if node in names}
    certificate = replace(certificate, last_slopes=last_slopes, weights=found.weights)
    if certificate.holds(certificate.margin(network)):
        return Certified(claim, certificate)
    return Certified(claim, None, "the checker's linear bounds are too loose")
