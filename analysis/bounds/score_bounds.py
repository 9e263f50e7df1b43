"""Bounds of OOD scores over a ball, from linear bounds of a few rows of the logits.

With z the logits, every bound below is one or a few rows p·z of CROWN, or reads the box [l, u]; the best is kept per image.

- logsumexp from below: LSE(z) ≥ p·z + H(p) for every p in the simplex; LSE(l).
- logsumexp from above: LSE(u); ub(z_k) + LSE_j ub(z_j − z_k); the chord of each exponential, then the tangent of the
  logarithm, in logits and in differences (Wei et al., AISTATS 2023, arXiv 2303.01713).
- log p_k = −LSE_j(z_j − z_k): the same on differences (GOOD: Bitterwolf et al., NeurIPS 2020, arXiv 2007.08473, eq. 6).
  `softmax(u).max()` is not an upper bound of the largest probability: other logits may be at their lower bounds.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Bounds, Region, or_infinite
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.operations.relaxations import chord_of_exp
from certood.errors import CannotCertify
from certood.scores import MSP, AbsentClass, Energy, Entropy, MaxLogit, Score

# Above so many outputs the K² differences of all pairs are read off the box instead of being bounded row by row.
PAIRS = 32
# Two ways of rounding the same number differ by a few units in the last place; so much is added outwards.
SLACK = 1e-13
# Where the tangent of log touches it, as multiples of the value at the centre.
REFERENCES = (1.0, 1.6, 2.6)


class RowBounds(Protocol):
    """An engine's analysis of a network over a ball, of which rows of the logits can be bounded."""

    @property
    def graph(self) -> Graph:
        """The network."""
        ...

    @property
    def ball(self) -> Region:
        """Where its inputs lie."""
        ...

    @property
    def method(self) -> str:
        """What computes the bounds."""
        ...

    def rows(self, coefficients: Tensor, constant: Tensor | None = None) -> Bounds:
        """Bounds (N, M) of rows (N, M, K) of the logits, plus constants (N, M) or nothing."""
        ...

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K) of the logits."""
        ...


@dataclass(frozen=True)
class Logits:
    """What a score's bounds read: the analysis, a factor on the logits, and the values at the centre (N, K)."""

    analysis: RowBounds
    factor: float
    centre: Tensor
    columns: int

    def box(self) -> Bounds:
        """Bounds (N, K) of the scaled logits, each class by its own row."""
        return self.rows(torch.eye(self.columns, dtype=torch.float64).expand(len(self.centre), -1, -1))

    def rows(self, coefficients: Tensor) -> Bounds:
        """Bounds (N, M) of rows (N, M, K) of the scaled logits; outputs beyond K do not enter."""
        return self.analysis.rows(self.padded(coefficients))

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K) of the scaled logits."""
        return self.analysis.lower_rows(self.padded(coefficients))

    def padded(self, coefficients: Tensor) -> Tensor:
        """Rows (…, K) of the scaled logits as rows of the network's outputs."""
        missing = self.analysis.graph.outputs - self.columns
        return torch.nn.functional.pad(coefficients * self.factor, (0, missing))


def score_bounds(analysis: RowBounds, score: Score, *, absent_class: bool = False) -> Bounds:
    """Bounds (N,) of a score over the ball of an analysis.

    With `absent_class` the last output is no class, and every score but AbsentClass ignores it. Raises CannotCertify for a
    score that has no bounds here.
    """
    logits = scaled_logits(analysis, score, absent_class=absent_class)
    match score:
        case Energy():
            lower, upper = logsumexp_bounds(logits)
            found = -score.temperature * upper, -score.temperature * lower
        case MaxLogit():
            box = logits.box()
            row = logits.lower_rows(logits.centre.softmax(1)[:, None])
            found = -box.upper.amax(1), -torch.maximum(box.lower.amax(1), row[:, 0])
        case MSP():
            low, high = log_probability_bounds(logits)
            found = -high.amax(1).exp(), -low.amax(1).exp()
        case AbsentClass():
            low, high = log_probability_bounds(logits)
            found = low[:, -1].exp(), high[:, -1].exp()
        case Entropy():
            found = entropy_bounds(*log_probability_bounds(logits))
        case _:
            raise CannotCertify(
                f"score {score.name!r} has no bounds here; energy, msp, max-logit, absent-class, entropy do"
            )
    lower, upper = found
    lower, upper = lower - SLACK * (1 + lower.abs()), upper + SLACK * (1 + upper.abs())
    return Bounds(or_infinite(lower, -1), or_infinite(upper, 1), analysis.method)


def scaled_logits(analysis: RowBounds, score: Score, *, absent_class: bool = False) -> Logits:
    """The logits that a score reads: divided by its temperature, without an absent class that it ignores."""
    with torch.no_grad():
        centre = analysis.graph(analysis.ball.centre)
    columns = centre.shape[1] - int(absent_class and not isinstance(score, AbsentClass))
    factor = 1 / score.temperature if isinstance(score, Energy) else 1.0
    return Logits(analysis, factor, centre[:, :columns] * factor, columns)


def score_upper(analysis: RowBounds, score: Score, *, absent_class: bool = False) -> Tensor:
    """Upper bounds (N,) of a score alone: for the energy one row of the logits, a fraction of the work of both sides."""
    if not isinstance(score, Energy):
        return score_bounds(analysis, score, absent_class=absent_class).upper
    logits = scaled_logits(analysis, score, absent_class=absent_class)
    weights = logits.centre.softmax(1)[:, None]
    upper = -score.temperature * (logits.lower_rows(weights) + torch.special.entr(weights).sum(2))[:, 0]
    upper = upper + SLACK * (1 + upper.abs())
    return or_infinite(upper, 1)


def score_lower(analysis: RowBounds, score: Score, *, absent_class: bool = False) -> Tensor:
    """Lower bounds (N,) of a score alone."""
    if not isinstance(score, Energy):
        return score_bounds(analysis, score, absent_class=absent_class).lower
    logits = scaled_logits(analysis, score, absent_class=absent_class)
    lower = -score.temperature * logsumexp_upper(logits, logits.box())
    lower = lower - SLACK * (1 + lower.abs())
    return or_infinite(lower, -1)


def logsumexp_bounds(logits: Logits) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (N,) of LSE(z)."""
    box = logits.box()
    weights = torch.stack([logits.centre.softmax(1), box.lower.softmax(1), box.upper.softmax(1)], 1)
    tangents = logits.lower_rows(weights) + torch.special.entr(weights).sum(2)
    lower = torch.maximum(torch.logsumexp(box.lower, 1), tangents.amax(1))
    return lower, logsumexp_upper(logits, box)


def logsumexp_upper(logits: Logits, box: Bounds) -> Tensor:
    """Upper bounds (N,) of LSE(z), the best of several."""
    count, columns = logits.centre.shape
    top = logits.centre.argmax(1)
    unit = torch.eye(columns, dtype=torch.float64)
    differences = logits.rows(unit[None] - unit[top][:, None])
    rows, constants = chord_rows(logits, box, differences)
    uppers = torch.cat(
        [
            torch.logsumexp(box.upper, 1)[:, None],
            (box.upper[torch.arange(count), top] + torch.logsumexp(differences.upper, 1))[:, None],
            constants - logits.lower_rows(-rows),
        ],
        1,
    )
    return or_infinite(uppers, 1).amin(1)


def chord_rows(logits: Logits, box: Bounds | None = None, differences: Bounds | None = None) -> tuple[Tensor, Tensor]:
    """Linear functions a·z + b ≥ LSE(z) on the ball, rows (N, M, K) and constants (N, M), from chords of exp.

    By the logits, whose bounds are `box`, and by their `differences` from the one that is largest at the centre.
    """
    count, columns = logits.centre.shape
    unit = torch.eye(columns, dtype=torch.float64)
    top = unit[logits.centre.argmax(1)]
    apart = unit[None] - top[:, None]
    own = _chords(logits, unit.expand(count, -1, -1), box or logits.box(), torch.zeros_like(top))
    other = _chords(logits, apart, differences or logits.rows(apart), top)
    return torch.cat([own[0], other[0]], 1), torch.cat([own[1], other[1]], 1)


def _chords(logits: Logits, maps: Tensor, box: Bounds, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, M, K) and constants (N, M) above offset·z + LSE_j(d_j) for d = maps·z in a box: chords of exp, tangents of log.

    e^d ≤ a·d + b on the box, Σ(a·d + b) = w, and log w ≤ log w₀ + (w − w₀)/w₀ for every w₀ > 0. The best w₀ is the largest w of
    the ball, which is not known before: the value at the centre is tried, and multiples of it.
    """
    shift = box.upper.amax(1, keepdim=True)
    slope, constant = chord_of_exp(box.lower - shift, box.upper - shift)
    centre = torch.einsum("njk,nk->nj", maps, logits.centre) - shift
    reference = (slope * centre + constant).sum(1, keepdim=True).clamp_min(1e-300) * torch.tensor(REFERENCES).double()
    rows = offset[:, None] + torch.einsum("nj,njk->nk", slope, maps)[:, None] / reference[..., None]
    rest = (constant - slope * shift).sum(1, keepdim=True) / reference
    return rows, rest + reference.log() - 1 + shift


def log_probability_bounds(logits: Logits) -> tuple[Tensor, Tensor]:
    """Bounds (N, K) of log softmax(z)ₖ = −LSE_j(z_j − z_k)."""
    count, columns = logits.centre.shape
    unit = torch.eye(columns, dtype=torch.float64)
    if columns <= PAIRS:
        maps = unit[None, :, :] - unit[:, None, :]
        pairs = logits.rows(maps.flatten(0, 1).expand(count, -1, -1))
        lower, upper = (part.view(count, columns, columns) for part in (pairs.lower, pairs.upper))
    else:
        box = logits.box()
        lower = box.lower[:, None, :] - box.upper[:, :, None]
        upper = box.upper[:, None, :] - box.lower[:, :, None]
        same = torch.eye(columns, dtype=torch.bool)
        lower, upper = lower.masked_fill(same, 0), upper.masked_fill(same, 0)
    # LSE(d) ≥ p·d + H(p), one row a class.
    weights = logits.centre.softmax(1)
    tangent_rows = weights[:, None, :] - unit[None]
    tangents = logits.lower_rows(tangent_rows) + torch.special.entr(weights).sum(1, keepdim=True)
    least = torch.maximum(torch.logsumexp(lower, 2), tangents)
    return -torch.logsumexp(upper, 2), (-least).clamp_max(0)


def entropy_bounds(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds (N,) of −Σ p log p from bounds (N, K) of log p.

    Below: each summand is concave in p, so smallest at an end of its interval. Above: for every λ, Σ max_p (h(p) − λp) + λ
    bounds the entropy of whatever sums to one (weak duality); λ by bisection, where the maximisers p sum to one.
    """
    p_low, p_high = low.exp(), high.exp()
    lower = torch.minimum(torch.special.entr(p_low), torch.special.entr(p_high)).sum(1).clamp_min(0)
    left, right = torch.full((len(low), 1), -745.0).double(), torch.zeros(len(low), 1).double()
    for _ in range(60):
        middle = (left + right) / 2
        over = middle.exp().clamp(p_low, p_high).sum(1, keepdim=True) > 1
        left, right = torch.where(over, left, middle), torch.where(over, middle, right)
    level = -1 - right
    best = right.exp().clamp(p_low, p_high)
    upper = (torch.special.entr(best) - level * best).sum(1) + level[:, 0]
    return lower, upper.clamp_max(math.log(low.shape[1]))
