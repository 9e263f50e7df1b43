"""Sound bounds of a network's logits and scores over a ball of images, in float64.

>>> graph = capture(model, images[:1])
>>> ball = LpBall(images, eps=2 / 255, norm=math.inf)
>>> bound(graph, ball, method="crown").lower            # logits (N, K)
>>> bound(graph, ball, method="crown", score=Energy())  # a score (N,)
"""

import math
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Bounds, LpBall
from certood.analysis.bounds.branching import Effort, branched_rows, branched_score
from certood.analysis.bounds.capturing import Captured, capture, list_operations, supported_operations
from certood.analysis.bounds.differentiable import DifferentiableBounds
from certood.analysis.bounds.engines import ENGINES, Engine, engine_by_name
from certood.analysis.bounds.exporting import export
from certood.analysis.bounds.gradient_bounds import GradientBounds, gradient_bound, logit_gradient_bound, score_gradient
from certood.analysis.bounds.graph import Graph, Node
from certood.analysis.bounds.linear.analysis import Analysis, LinearBound
from certood.analysis.bounds.linear.full_precision import in_full_precision
from certood.analysis.bounds.memory import default_memory, images_at_once
from certood.analysis.bounds.methods import METHODS, analyse
from certood.analysis.bounds.outer import OuterBoxes
from certood.analysis.bounds.score_bounds import logits_of, score_bounds, score_lower, score_upper
from certood.errors import CertoodError
from certood.scores import Score

__all__ = [
    "ENGINES",
    "METHODS",
    "Analysis",
    "Bounds",
    "Captured",
    "DifferentiableBounds",
    "Engine",
    "GradientBounds",
    "Graph",
    "LinearBound",
    "LpBall",
    "Node",
    "OuterBoxes",
    "analyse",
    "bound",
    "capture",
    "default_memory",
    "engine_by_name",
    "export",
    "gradient_bound",
    "images_at_once",
    "in_full_precision",
    "list_operations",
    "logit_gradient_bound",
    "logits_of",
    "score_bounds",
    "score_gradient",
    "score_lower",
    "score_upper",
    "supported_operations",
]

# So long is searched at least, where the first bounds have taken all the time.
LEAST_SECONDS = 1e-3


def bound(
    graph: Graph,
    ball: LpBall,
    method: str = "crown",
    *,
    specification: tuple[Tensor, Tensor | None] | None = None,
    score: Score | None = None,
    iterations: int = 20,
    max_memory: float | None = None,
    dtype: torch.dtype = torch.float64,
    engine: str = "certood",
    parts: int | None = None,
    timeout: float | None = None,
    advance: Callable[[float], None] = lambda _: None,
) -> Bounds:
    """Bounds over a ball of the logits (N, K), of rows C·f(x) + c of them (N, M), or of a score (N,).

    `method` is interval, crown-ibp, crown or alpha-crown (slopes optimised in `iterations` steps); `specification` is (C, c)
    with C of shape (N, M, K) or (M, K) and c of (N, M), (M,) or None; `max_memory` is in bytes, by default a quarter of what is
    free: images are taken in parts that fit, and where a single one does not, a simpler method is used and named in the
    result. `dtype` float32 is faster; its rounding errors widen the bounds. `engine` is one of ENGINES.

    With `parts` or `timeout` bounds are made tighter by branch and bound: every ball is split into at most so many parts for each
    end of a row and each side of a score, within so many seconds an image, which images and rows share. `advance` is told how
    many images' worth of that is newly done. Raises CertoodError for a specification that does not fit, or for branch and bound
    by an engine that has none, and CannotCertify for a score without bounds.
    """
    if specification is not None and score is not None:
        raise CertoodError("give a specification or a score, not both")
    if iterations < 0 or not (timeout is None or timeout > 0):
        raise CertoodError(f"expected iterations >= 0 and timeout > 0, got {iterations} and {timeout}")
    bounding = engine_by_name(engine)
    branching = parts is not None or timeout is not None
    if branching and not bounding.linear:
        raise CertoodError(f"the engine {engine} has no branch and bound; leave parts and timeout out")
    rows, constant = _specification(specification, graph.outputs, len(ball), ball.centre.device)
    budget = max_memory or default_memory()
    at_once = bounding.images_at_once(graph, budget, dtype, method) or len(ball)
    found = []
    for start, part in zip(range(0, len(ball), at_once), ball.split(at_once), strict=True):
        begin = time.monotonic()
        analysis = bounding.analyse(graph, part, method, iterations=iterations, max_memory=budget, dtype=dtype)
        chosen = slice(start, start + at_once)
        own, shift = rows[chosen], None if constant is None else constant[chosen]
        if not branching:
            found.append(analysis.rows(own, shift) if score is None else score_bounds(analysis, score))
            continue
        assert isinstance(analysis, Analysis)
        seconds = math.inf if timeout is None else timeout * len(part) - (time.monotonic() - begin)
        effort = Effort(parts=math.inf if parts is None else parts, seconds=max(seconds, LEAST_SECONDS))
        moved = partial(_scaled, advance, len(part))
        if score is None:
            found.append(branched_rows(analysis, own, shift, effort, advance=moved))
        else:
            found.append(branched_score(analysis, score, effort, advance=moved))
    return Bounds(torch.cat([part.lower for part in found]), torch.cat([part.upper for part in found]), found[0].method)


def _scaled(advance: Callable[[float], None], factor: float, share: float) -> None:
    advance(factor * share)


def _specification(
    given: tuple[Tensor, Tensor | None] | None, outputs: int, count: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Rows (N, M, K) and constants (N, M) or None; without a specification those that read the logits."""
    if given is None:
        return torch.eye(outputs, dtype=torch.float64, device=device).expand(count, -1, -1), None
    coefficients = given[0].to(torch.float64)
    if coefficients.ndim not in (2, 3) or coefficients.shape[-1] != outputs or not coefficients.shape[-2]:
        raise CertoodError(f"expected C of shape (N, M, {outputs}) or (M, {outputs}), got {tuple(coefficients.shape)}")
    constant = given[1]
    try:
        rows = coefficients.expand(count, *coefficients.shape[-2:])
        return rows, None if constant is None else constant.to(torch.float64).expand(count, rows.shape[1])
    except RuntimeError as error:
        raise CertoodError(f"expected C of {count} images or of one, and c of as many rows as C: {error}") from error
