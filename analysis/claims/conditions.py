"""Which sufficient conditions of claims certood's own engine proves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from certood.analysis.bounds import Graph, LpBall, bound
from certood.analysis.claims.certified_run import CertifiedRun, Claim
from certood.scores.conditions import LogitCondition

# Images whose rows are bounded together.
BATCH = 32


@dataclass(frozen=True)
class Conditioned:
    """A claim with the condition on the logits that suffices for it, and whether our own bounds prove that."""

    claim: Claim
    condition: LogitCondition
    proved: bool


def has_condition(run: CertifiedRun, claim: Claim) -> bool:
    """Whether the detector's score has a condition at all."""
    detector, (network, score) = run.detector, run.part
    assert detector.threshold is not None
    with torch.no_grad():
        logits = network(detector.pixels(claim.image[None]))[0].tolist()
    return score.condition(logits, detector.threshold, accepted=claim.accepted) is not None


def conditioned(run: CertifiedRun, graph: Graph, claims: Sequence[Claim]) -> list[Conditioned]:
    """The conditions of claims, where the detector's score has one; `graph` is of the network that decides (`CertifiedRun.part`).

    The proof is by the method of the certification, over the ball that was certified, which contains the exported box.
    """
    found = []
    for claim in claims:
        condition = _condition(run, graph, claim)
        if condition is not None and all(math.isfinite(constant) for constant in condition.constants):
            found.append((claim, condition))
    proved: dict[str, bool] = {}
    for accepted in (True, False):
        group = [pair for pair in found if pair[0].accepted == accepted]
        for start in range(0, len(group), BATCH):
            part = group[start : start + BATCH]
            proved |= zip((claim.name for claim, _ in part), _proved(run, graph, part), strict=True)
    return [Conditioned(claim, condition, proved[claim.name]) for claim, condition in found]


def _condition(run: CertifiedRun, graph: Graph, claim: Claim) -> LogitCondition | None:
    assert run.detector.threshold is not None
    with torch.no_grad():
        logits = graph(torch.from_numpy(claim.image)[None].double())[0].tolist()
    return run.part[1].condition(logits, run.detector.threshold, accepted=claim.accepted)


def _proved(run: CertifiedRun, graph: Graph, part: Sequence[tuple[Claim, LogitCondition]]) -> list[bool]:
    """Whether every row of each condition is positive over the ball; all have the same number of rows."""
    images = torch.from_numpy(np.stack([claim.image for claim, _ in part])).double()
    eps = torch.tensor([claim.eps for claim, _ in part], dtype=torch.float64)
    rows = torch.tensor([condition.rows for _, condition in part], dtype=torch.float64)
    constants = torch.tensor([condition.constants for _, condition in part], dtype=torch.float64)
    lower = bound(
        graph,
        LpBall(images, eps, run.settings.norm),
        run.settings.method,
        specification=(rows, constants),
        iterations=run.settings.iterations,
        engine=run.settings.engine,
        dtype=run.settings.precision,
    ).lower
    proved: list[bool] = (lower > 0).all(1).tolist()
    return proved
