"""Bounds of the gradient of a score over a ball, and with them of its local Lipschitz constant.

∇S = Jᵀ∂S(z): the gradient with respect to the logits lies in a box with a known sum, the backward pass is a graph of gates
(`backward_graph`), and both kinds of bounds run through it. Energy: ∂S = −softmax(z), whose entries sum to −1.

Where these entries have one sign, ∇S is a weighted sum of the logits' gradients, ‖∇S‖ ≤ Σ|∂S/∂z_k|·‖∇z_k‖, and the largest
such sum over the box of weights with that total bounds the norm as well. It keeps what the boxes of pixels lose: that the
weights of all classes are not large at once.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certood.analysis.bounds.backward_graph import backward_graph
from certood.analysis.bounds.ball import LpBall, or_infinite
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.analysis import Analysis
from certood.analysis.bounds.memory import images_at_once
from certood.analysis.bounds.methods import analyse
from certood.analysis.bounds.operations.base import Rows
from certood.analysis.bounds.operations.flattening import flat
from certood.analysis.bounds.score_bounds import logits_of
from certood.scores import Score

# Rounding of what is summed below, relative to its magnitude.
SLACK = 1e-12
# The gradients of so many logits are bounded one by one, those with the largest weights; the others together.
SINGLE_LOGITS = 10
# Weights that are known to less than that, all together, lose hardly anything in the boxes of pixels.
LEAST_SPREAD = 0.1


@dataclass(frozen=True)
class GradientBounds:
    """Elementwise bounds of a gradient, (N, C, H, W), over a ball, and an upper bound (N,) of its dual norm there.

    `dual_norm` bounds ‖∇S‖_q, q the dual exponent of the ball's norm: a local Lipschitz constant of S on the ball.
    """

    lower: Tensor
    upper: Tensor
    dual_norm: Tensor
    method: str


class SumBox:
    """{c : lower ≤ c ≤ upper, Σc = total} for every image: what is known of the gradient with respect to the logits."""

    is_box = False

    def __init__(self, lower: Tensor, upper: Tensor, total: float) -> None:
        self.lower, self.upper, self.total = lower, upper, total
        self.centre = (lower + upper) / 2

    def __len__(self) -> int:
        return len(self.centre)

    def chosen(self, images: Tensor) -> "SumBox":
        """The sets of some images, by their numbers."""
        return SumBox(self.lower[images], self.upper[images], self.total)

    @property
    def one_signed(self) -> bool:
        """Whether all entries have the sign of their sum, which is not zero."""
        ends = self.lower if self.total > 0 else -self.upper
        return self.total != 0 and bool((ends >= 0).all())

    def least(self, rows: Rows) -> Tensor:
        """min of rows·(c − centre) over the set, (N, R), for rows (N, R, K).

        By duality Σ min((r − λ)c) + λ·total bounds it for every λ; the best λ is an entry of the row, where filling up the
        cheapest entries first reaches the total.
        """
        assert isinstance(rows, Tensor), "gradients of logits have no plane"
        ordered, order = rows.sort(dim=2)
        room = (self.upper - self.lower)[:, None].expand_as(rows).gather(2, order).cumsum(2)
        missing = (self.total - self.lower.sum(1))[:, None, None]
        place = (room < missing).sum(2, keepdim=True).clamp_max(rows.shape[2] - 1)
        level = ordered.gather(2, place)
        rest = rows - level
        best = rest.clamp_min(0) * self.lower[:, None] + rest.clamp_max(0) * self.upper[:, None]
        filled = best.sum(2) + level[..., 0] * self.total
        box = rows.clamp_min(0) * self.lower[:, None] + rows.clamp_max(0) * self.upper[:, None]
        return torch.maximum(filled, box.sum(2)) - (rows @ self.centre[:, :, None])[..., 0]


def gradient_bound(
    graph: Graph,
    ball: LpBall,
    *,
    score: Score,
    method: str = "crown",
    iterations: int = 20,
    max_memory: float | None = None,
) -> GradientBounds:
    """Bounds of ∇S over a ball, elementwise (N, C, H, W) and in the dual norm (N,); units: score per pixel.

    `method` bounds the network forwards; backwards `interval` propagates boxes and the others also linear functions. At a
    kink the bounds hold for every Clarke generalised gradient. Raises CannotCertify for a score or an operation whose
    derivative has no bounds here.
    """
    forward = analyse(graph, ball, method, iterations=iterations, max_memory=max_memory)
    return score_gradient(forward, ball, score)


def score_gradient(forward: Analysis, ball: LpBall, score: Score, *, elementwise: bool = True) -> GradientBounds:
    """The bounds of `gradient_bound` from an analysis that is there already.

    Without `elementwise`, rows are not bounded pixel by pixel: the elements are looser, the dual norm hardly.
    """
    with torch.no_grad():
        box = SumBox(*score.gradient_box(logits_of(forward)))
        found = _backwards(forward, ball, box, elementwise=elementwise)
        wide = ((box.upper - box.lower).sum(1) > LEAST_SPREAD * abs(box.total)).nonzero().flatten()
        if not box.one_signed or not len(wide):
            return found
        norm = found.dual_norm.clone()
        norm[wide] = torch.minimum(norm[wide], _weighted_norm(forward, ball, box.chosen(wide), wide))
        return replace(found, dual_norm=norm)


def logit_gradient_bound(
    graph: Graph, ball: LpBall, output: int, method: str = "crown", *, iterations: int = 20
) -> GradientBounds:
    """Bounds of the gradient of one logit over a ball, elementwise (N, C, H, W) and in the dual norm (N,)."""
    forward = analyse(graph, ball, method, iterations=iterations)
    unit = torch.zeros(len(ball), graph.outputs, dtype=torch.float64, device=ball.centre.device)
    unit[:, output] = 1
    with torch.no_grad():
        return _backwards(forward, ball, SumBox(unit, unit, 1.0))


def _weighted_norm(forward: Analysis, ball: LpBall, box: SumBox, places: Tensor) -> Tensor:
    """Upper bounds (M,) of ‖Σ c_k ∇z_k‖_q for c in a box with one sign: the largest Σ|c_k|·L_k, L_k bounding ‖∇z_k‖_q.

    The sets are those of the images `places` (M,). Of more than SINGLE_LOGITS classes those with the least weights count as one:
    its L is that of any mean of their gradients.
    """
    low, high = (box.lower, box.upper) if box.total > 0 else (-box.upper, -box.lower)
    classes = low.shape[1]
    units = torch.eye(classes, dtype=low.dtype, device=low.device).expand(len(low), -1, -1)
    smallest = units
    if classes > SINGLE_LOGITS:
        order = high.argsort(1, descending=True)
        first, rest = order[:, : SINGLE_LOGITS - 1], order[:, SINGLE_LOGITS - 1 :]
        single = units.gather(1, first[..., None].expand(-1, -1, classes))
        others = torch.zeros_like(low).scatter(1, rest, 1.0)[:, None]
        smallest, units = torch.cat([single, torch.zeros_like(others)], 1), torch.cat([single, others], 1)
        low, high = (
            torch.cat([ends.gather(1, first), ends.gather(1, rest).sum(1, keepdim=True)], 1) for ends in (low, high)
        )
    count = units.shape[1]
    images = places.repeat_interleave(count)
    least, most = smallest.flatten(0, 1), units.flatten(0, 1)
    together = count * max(1, images_at_once(forward.graph, forward.max_memory, torch.float64, "crown") // count)
    norms = [
        _backwards(forward, ball, SumBox(least[part], most[part], 1.0), images[part], elementwise=False).dual_norm
        for part in torch.arange(len(images), device=low.device).split(together)
    ]
    constants = torch.cat(norms).view(-1, count)
    weights = SumBox(low, high.clamp_max(abs(box.total)), abs(box.total))
    finite = torch.where(constants.isfinite(), constants, 0.0)
    largest = (finite * weights.centre).sum(1) - weights.least(-finite[:, None])[:, 0]
    unknown = (constants.isinf() & (high > 0)).any(1)
    return torch.where(unknown, math.inf, largest * (1 + classes * SLACK))


def _backwards(
    forward: Analysis,
    ball: LpBall,
    gradients: SumBox,
    images: Tensor | None = None,
    *,
    elementwise: bool = True,
) -> GradientBounds:
    """Bounds of Jᵀc for c in the sets `gradients` (M), over the balls of these images (M,), by default of all of them once."""
    boxes = forward.boxes
    if images is not None:
        boxes = {node: (lower[images], upper[images]) for node, (lower, upper) in boxes.items()}
        ball = ball.chosen(images)
    graph = backward_graph(forward.graph, boxes)
    method = "interval" if forward.kind == "interval" else "crown"
    backward = analyse(graph, gradients, method, max_memory=forward.max_memory)
    last = len(graph.nodes) - 1
    lower, upper = (flat(bound) for bound in backward.boxes[last])
    shape = graph.nodes[last].shape
    if elementwise and method != "interval":
        width = lower.shape[1]
        step = max(1, int(forward.max_memory // (64 * width * len(ball))))
        found: list[list[Tensor]] = [[], []]
        for part in torch.arange(width, device=lower.device).split(step):
            unit = torch.nn.functional.one_hot(part, width).to(torch.float64).expand(len(ball), -1, -1)
            for sign, kept in zip((1, -1), found, strict=True):
                kept.append(sign * backward.least(last, sign * unit.unflatten(2, shape)))
        lower, upper = torch.maximum(lower, torch.cat(found[0], 1)), torch.minimum(upper, torch.cat(found[1], 1))
    slack = SLACK * torch.maximum(lower.abs(), upper.abs()).amax(1, keepdim=True)
    lower, upper = lower - slack, upper + slack
    norm = _dual_norm(lower, upper, ball.norm)
    if ball.norm != 1 and method != "interval":
        row, constant = _norm_row(lower, upper, ball.norm)
        linear = constant - backward.least(last, -row[:, None].unflatten(2, shape))[:, 0]
        linear = linear * (1 + SLACK) if ball.norm == math.inf else linear.clamp_min(0).sqrt() * (1 + SLACK)
        norm = torch.minimum(norm, torch.where(linear.isfinite(), linear, math.inf))
    return GradientBounds(lower.unflatten(1, shape), upper.unflatten(1, shape), or_infinite(norm, 1), forward.method)


def _dual_norm(lower: Tensor, upper: Tensor, norm: float) -> Tensor:
    largest = torch.maximum(lower.abs(), upper.abs())
    if norm == math.inf:
        return largest.sum(1)
    return largest.norm(dim=1) if norm == 2 else largest.amax(1)


def _norm_row(lower: Tensor, upper: Tensor, norm: float) -> tuple[Tensor, Tensor]:
    """A row a and a constant b with a·g + b ≥ ‖g‖₁ (norm inf), or ‖g‖₂² (norm 2), on the box: chords of |·| or of (·)²."""
    if norm == 2:
        return lower + upper, -(lower * upper).sum(1)
    width = upper - lower
    slope = torch.where(width > 0, (upper.abs() - lower.abs()) / torch.where(width > 0, width, 1.0), 0.0)
    return slope, torch.maximum(upper.abs() - slope * upper, lower.abs() - slope * lower).sum(1)
