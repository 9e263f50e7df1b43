"""Bounds of rows of the logits and of scores by branch and bound."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Bounds, or_infinite
from certood.analysis.bounds.branching.functions import Functions, Mixture, TangentFamily
from certood.analysis.bounds.branching.search import Effort, branched_least
from certood.analysis.bounds.linear.analysis import Analysis
from certood.analysis.bounds.operations.precision import outward_sum
from certood.analysis.bounds.score_bounds import SLACK, logits_of, score_bounds
from certood.scores import Score, Side


def branched_rows(
    analysis: Analysis,
    rows: Tensor,
    constants: Tensor | None = None,
    effort: Effort | None = None,
    *,
    advance: Callable[[float], None] = lambda _: None,
) -> Bounds:
    """Bounds (N, M) of rows (N, M, K) of the logits plus constants (N, M), from both sides, as tight as the effort makes them."""
    plain = analysis.rows(rows, constants)
    count, most = rows.shape[:2]
    shift = rows.new_zeros(count, most) if constants is None else constants
    both, shifts = torch.cat([rows, -rows], 1).flatten(0, 1)[:, None], torch.cat([shift, -shift], 1).flatten()[:, None]
    numbers = torch.arange(len(both), device=rows.device)
    known = torch.cat([plain.lower, -plain.upper], 1).flatten()
    functions = Functions(numbers // (2 * most), numbers, torch.zeros_like(shifts), known, Mixture(both, shifts))
    found = branched_least(analysis, functions, effort, target=torch.inf, advance=advance)
    lower, negated = _outwards(found).view(count, 2 * most).chunk(2, 1)
    return _named(plain.intersect(Bounds(lower, -negated)), analysis)


def branched_score(
    analysis: Analysis,
    score: Score,
    effort: Effort | None = None,
    *,
    advance: Callable[[float], None] = lambda _: None,
) -> Bounds:
    """Bounds (N,) of a score from both sides, as tight as the effort makes them; each side takes half of it."""
    plain = score_bounds(analysis, score)
    effort = effort or Effort()
    half = replace(effort, seconds=effort.seconds / 2)

    def found(side: Side) -> Tensor:
        functions = score_functions(analysis, score, side)
        return _outwards(
            branched_least(analysis, functions, half, target=torch.inf, advance=lambda share: advance(share / 2))
        )

    lower, upper = score.from_row_scale(found("lower")), score.from_row_scale(-found("upper"))
    return _named(plain.intersect(Bounds(lower, upper)), analysis)


def score_functions(analysis: Analysis, score: Score, side: Side, threshold: float | None = None) -> Functions:
    """What has to be bounded from below for a bound of a score from one side: S, or −S for the upper one, as its rows have it.

    With a threshold γ it is S − γ, or γ − S. Every image is a goal, and every group of the score's rows a function.
    """
    logits, sign = logits_of(analysis), 1 if side == "lower" else -1
    found = score.rows(logits, side)
    level = 0.0 if threshold is None else score.to_row_scale(threshold)
    count, groups = found.constants.shape[:2]
    images = torch.arange(count, device=found.rows.device).repeat_interleave(groups)
    rows, constants = sign * found.rows, sign * (found.constants - level)
    plain = outward_sum(logits.lower_rows(rows.flatten(1, 2)).view_as(constants), constants).flatten(0, 1)
    known = torch.nan_to_num(plain, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(1)
    if found.tangents is not None:
        numbers = torch.arange(groups, device=images.device).repeat(count)
        start = found.tangents.start.repeat_interleave(groups, 0)
        return Functions(images, images, start, known, TangentFamily(found.tangents, sign, numbers, -sign * level))
    family = Mixture(rows.flatten(0, 1), constants.flatten(0, 1))
    return Functions(images, images, family.start(plain), known, family)


def _named(bounds: Bounds, analysis: Analysis) -> Bounds:
    return Bounds(bounds.lower, bounds.upper, f"{analysis.method} with branch and bound")


def _outwards(values: Tensor) -> Tensor:
    return or_infinite(values - SLACK * (1 + values.abs()), -1)
