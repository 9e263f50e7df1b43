"""Sound bounds of a network's logits and scores over a ball of images, in float64.

>>> graph = capture(model, images[:1])
>>> ball = LpBall(images, eps=2 / 255, norm=math.inf)
>>> bound(graph, ball, method="crown").lower            # logits (N, K)
>>> bound(graph, ball, method="crown", score=Energy())  # a score (N,)
"""

import torch
from torch import Tensor

from certood.analysis.bounds.auto_lirpa import AutoLirpa
from certood.analysis.bounds.ball import Bounds, LpBall
from certood.analysis.bounds.capture import capture, list_operations, supported_operations
from certood.analysis.bounds.gradient_bounds import GradientBounds, gradient_bound, logit_gradient_bound, score_gradient
from certood.analysis.bounds.graph import Graph, Node
from certood.analysis.bounds.propagation import METHODS, Analysis, LinearBound, analyse
from certood.analysis.bounds.score_bounds import score_bounds, score_lower, score_upper
from certood.errors import CertoodError
from certood.scores import Score

__all__ = [
    "METHODS",
    "Analysis",
    "Bounds",
    "GradientBounds",
    "Graph",
    "LinearBound",
    "LpBall",
    "Node",
    "analyse",
    "bound",
    "capture",
    "gradient_bound",
    "list_operations",
    "logit_gradient_bound",
    "score_bounds",
    "score_gradient",
    "score_lower",
    "score_upper",
    "supported_operations",
]


def bound(
    graph: Graph,
    ball: LpBall,
    method: str = "crown",
    *,
    specification: tuple[Tensor, Tensor | None] | None = None,
    score: Score | None = None,
    iterations: int = 20,
    max_memory: float | None = None,
    engine: str = "certood",
) -> Bounds:
    """Bounds over a ball of the logits (N, K), of rows C·f(x) + c of them (N, M), or of a score (N,).

    `method` is interval, crown-ibp, crown or alpha-crown (slopes optimised in `iterations` steps); `specification` is (C, c)
    with C of shape (N, M, K) or (M, K) and c of (N, M), (M,) or None; `max_memory` is in bytes, by default a quarter of what is
    free; `engine` may be auto-lirpa where that package is installed (l_inf only). Raises CertoodError for a specification
    that does not fit, and CannotCertify for a score without bounds.
    """
    if specification is not None and score is not None:
        raise CertoodError("give a specification or a score, not both")
    analysis: Analysis | AutoLirpa
    if engine == "auto-lirpa":
        analysis = AutoLirpa(graph, ball, method, iterations=iterations)
    elif engine == "certood":
        analysis = analyse(graph, ball, method, iterations=iterations, max_memory=max_memory)
    else:
        raise CertoodError(f"unknown engine {engine!r}; expected certood or auto-lirpa")
    if score is not None:
        return score_bounds(analysis, score)
    count = len(ball)
    if specification is None:
        return analysis.rows(torch.eye(graph.outputs, dtype=torch.float64).expand(count, -1, -1))
    coefficients = specification[0].to(torch.float64)
    if coefficients.ndim not in (2, 3) or coefficients.shape[-1] != graph.outputs:
        raise CertoodError(
            f"expected C of shape (N, M, {graph.outputs}) or (M, {graph.outputs}), got {coefficients.shape}"
        )
    constant = specification[1]
    rows = coefficients.expand(count, *coefficients.shape[-2:])
    return analysis.rows(rows, None if constant is None else constant.to(torch.float64).expand(count, rows.shape[1]))
