"""Bounds of every node of a graph over a ball: intervals forwards, linear functions backwards (CROWN).

Zhang et al., NeurIPS 2018 (arXiv 1811.00866); Xu et al., NeurIPS 2020 (arXiv 2002.12920). Everything is in float64.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certood.analysis.bounds.activations import RELU
from certood.analysis.bounds.ball import Bounds, Region
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.operations import Curved, Elementwise, Interval, LinearOperation
from certood.analysis.bounds.optimised import optimised_least
from certood.analysis.bounds.pairs import JointRelaxation
from certood.analysis.bounds.relaxations import Relaxation, relu_relaxation
from certood.errors import CannotCertify, CertoodError

METHODS = ("interval", "crown-ibp", "crown", "alpha-crown")
MEMORY_SHARE = 0.25
# Coefficients, their relaxed copies and what a transposed convolution keeps stand in memory at once.
COPIES = 8
# Neurons of a layer times those of the largest: above it the slopes of its rows are not optimised.
INTERMEDIATE_WORK = 2_000_000


@dataclass(frozen=True)
class LinearBound:
    """rows·x + constant bounds a function of the image from below over the ball: (N, R, C, H, W) and (N, R)."""

    rows: Tensor
    constant: Tensor


@dataclass
class Analysis:
    """What is known of a graph over a ball: a box for every node, and linear bounds of any rows of a node.

    With `iterations` above 0 the slopes of ReLU are optimised for every row that is bounded. Tighter boxes usually give
    tighter rows, but not always: `simpler` is the analysis by the method before, with which rows are intersected.
    """

    graph: Graph
    ball: Region
    method: str
    max_memory: float
    iterations: int = 0
    simpler: "Analysis | None" = None
    boxes: dict[int, Interval] = field(default_factory=dict)

    def logits(self) -> Bounds:
        """Bounds of the logits (N, K)."""
        lower, upper = self.boxes[len(self.graph.nodes) - 1]
        return Bounds(lower, upper, self.method)

    def rows(self, coefficients: Tensor, constant: Tensor | None = None) -> Bounds:
        """Bounds (N, M) of coefficients·f(x) + constant, for coefficients (N, M, K) and constant (N, M) or None.

        The better of the linear bound and of the box of the logits is taken for every row.
        """
        last = len(self.graph.nodes) - 1
        box = self.logits()
        positive, negative = coefficients.clamp_min(0), coefficients.clamp_max(0)
        lower = torch.einsum("nmk,nk->nm", positive, box.lower) + torch.einsum("nmk,nk->nm", negative, box.upper)
        upper = torch.einsum("nmk,nk->nm", positive, box.upper) + torch.einsum("nmk,nk->nm", negative, box.lower)
        if self.method != "interval":
            both = self.least(last, torch.cat([coefficients, -coefficients], 1))
            count = coefficients.shape[1]
            lower, upper = torch.maximum(lower, both[:, :count]), torch.minimum(upper, -both[:, count:])
        method = self.method
        if self.simpler is not None:
            other = self.simpler.rows(coefficients)
            gained = int(((other.lower > lower + 1e-9) | (other.upper < upper - 1e-9)).sum())
            lower, upper = torch.maximum(lower, other.lower), torch.minimum(upper, other.upper)
            if gained:
                method = f"{method} ({self.simpler.method} was tighter in {gained} of {lower.numel()} rows)"
        shift = 0 if constant is None else constant
        return Bounds(_or_infinite(lower + shift, -1), _or_infinite(upper + shift, 1), method)

    def least(self, node: int, rows: Tensor) -> Tensor:
        """Lower bounds (N, R) of rows (N, R, *shape) of a node, in chunks that keep to the memory budget."""
        size = max(other.shape.numel() for other in self.graph.nodes[: node + 1])
        chunk = int(self.max_memory // (COPIES * 8 * size * len(self.ball)))
        if chunk < 1:
            raise CannotCertify(
                f"one row of linear bounds needs {COPIES * 8 * size * len(self.ball) / 2**20:.0f} MiB, but max_memory is "
                f"{self.max_memory / 2**20:.0f} MiB; use fewer images at once, or method 'interval'"
            )
        if self.iterations:
            # The graph of the ascent keeps every layer's coefficients.
            chunk = max(1, chunk // len(self.graph.nodes))
            return torch.cat([optimised_least(self, node, part, self.iterations) for part in rows.split(chunk, 1)], 1)
        return torch.cat([self.plain_least(node, part) for part in rows.split(chunk, 1)], 1)

    def plain_least(self, node: int, rows: Tensor) -> Tensor:
        """Lower bounds (N, R) of rows of a node with CROWN's own slopes, all at once."""
        linear = self.linear_lower(node, rows)
        return _or_infinite(self.ball.least(linear.rows) + linear.constant, -1)

    def linear_lower(self, node: int, rows: Tensor, slopes: Mapping[int, Tensor] | None = None) -> LinearBound:
        """A linear function of the image that bounds rows (N, R, *shape) of a node from below over the ball."""
        pending: dict[int, Tensor] = {node: rows}
        constant = rows.new_zeros(rows.shape[:2])
        for index in range(node, 0, -1):
            if index not in pending:
                continue
            own = pending.pop(index)
            current = self.graph.nodes[index]
            operation = current.operation
            shapes = [self.graph.nodes[source].shape for source in current.inputs]
            if isinstance(operation, LinearOperation):
                parts, added = operation.transpose(own, shapes)
            elif isinstance(operation, JointRelaxation):
                parts, added = operation.transpose_lower(own, [self.boxes[i] for i in current.inputs], shapes)
            else:
                assert isinstance(operation, Elementwise)
                relaxation = self._relaxation(operation, current.inputs[0], slopes)
                parts, added = _relaxed(own, relaxation)
            constant = constant + added
            for source, part in zip(current.inputs, parts, strict=True):
                pending[source] = pending[source] + part if source in pending else part
        return LinearBound(pending[0], constant)

    def _relaxation(self, operation: Elementwise, source: int, slopes: Mapping[int, Tensor] | None) -> Relaxation:
        lower, upper = self.boxes[source]
        if operation is RELU and slopes is not None:
            return relu_relaxation(lower[:, None], upper[:, None], slopes.get(source))
        lines = operation.lines(lower, upper)
        return Relaxation(
            lines.lower_slope[:, None],
            lines.lower_shift[:, None],
            lines.upper_slope[:, None],
            lines.upper_shift[:, None],
        )


def _relaxed(rows: Tensor, relaxation: Relaxation) -> tuple[list[Tensor], Tensor]:
    """Rows before an activation, from rows after it: a positive coefficient takes the lower line, a negative the upper."""
    positive, negative = rows.clamp_min(0), rows.clamp_max(0)
    before = positive * relaxation.lower_slope + negative * relaxation.upper_slope
    constant = (positive * relaxation.lower_shift + negative * relaxation.upper_shift).flatten(2).sum(2)
    return [before], constant


def _or_infinite(values: Tensor, sign: int) -> Tensor:
    """Not a number means nothing is known: infinity on the side of this sign."""
    return torch.where(values.isnan(), sign * math.inf, values)


def analyse(
    graph: Graph, ball: Region, method: str = "crown", *, iterations: int = 20, max_memory: float | None = None
) -> Analysis:
    """Boxes of every node over a ball.

    `interval` and `crown-ibp` propagate boxes; `crown` and `alpha-crown` tighten the box before every activation by linear
    bounds, of the neurons whose sign is not known (ReLU) or of all of them. `alpha-crown` optimises the slopes of every row
    in `iterations` steps, those of rows before an activation where INTERMEDIATE_WORK allows. For the norms 2 and 1 the box
    of whatever is affine in the image comes from the dual norm, elementwise operations first included. `max_memory` is in
    bytes. Raises CertoodError for an unknown method or images of another shape.
    """
    if method not in METHODS:
        raise CertoodError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if tuple(ball.centre.shape[1:]) != tuple(graph.nodes[0].shape):
        raise CertoodError(
            f"the network takes images {tuple(graph.nodes[0].shape)}, got {tuple(ball.centre.shape[1:])}"
        )
    analysis = Analysis(graph, ball, method, max_memory or _default_memory())
    if method in ("crown", "alpha-crown"):
        simpler = METHODS[METHODS.index(method) - 1]
        analysis.simpler = analyse(graph, ball, simpler, max_memory=analysis.max_memory)
    analysis.boxes[0] = (ball.lower, ball.upper)
    affine = {0}
    readers = _curved_readers(graph)
    linear_bounds = method in ("crown", "alpha-crown")
    with torch.no_grad():
        for index, node in enumerate(graph.nodes[1:], start=1):
            box = node.operation.interval([analysis.boxes[source] for source in node.inputs])
            analysis.boxes[index] = (_or_infinite(box[0], -1), _or_infinite(box[1], 1))
            linear = isinstance(node.operation, LinearOperation) and all(source in affine for source in node.inputs)
            if linear:
                affine.add(index)
            if linear and ball.is_box:
                continue
            if linear and (index in readers or index == len(graph.nodes) - 1):
                chosen = torch.ones_like(box[0], dtype=torch.bool)
            elif linear_bounds and index in readers:
                chosen = torch.stack([reader.unsettled(analysis.boxes[index]) for reader in readers[index]]).any(0)
            else:
                continue
            work = node.shape.numel() * max(part.shape.numel() for part in graph.nodes)
            analysis.iterations = iterations if method == "alpha-crown" and work <= INTERMEDIATE_WORK else 0
            _tighten(analysis, index, chosen.flatten(1))
    analysis.iterations = iterations if method == "alpha-crown" else 0
    return analysis


def _curved_readers(graph: Graph) -> dict[int, list[Curved]]:
    """The nonlinear operations that read each node."""
    found: dict[int, list[Curved]] = {}
    for node in graph.nodes:
        if isinstance(node.operation, Curved):
            for source in node.inputs:
                found.setdefault(source, []).append(node.operation)
    return found


def _tighten(analysis: Analysis, index: int, chosen: Tensor) -> None:
    """Intersect the box of a node with linear bounds of the neurons in a mask (N, D)."""
    lower, upper = (bound.flatten(1) for bound in analysis.boxes[index])
    most = int(chosen.sum(1).max())
    if not most:
        return
    # Every image has its own neurons to bound; shorter lists are filled up with neurons that are bounded once more.
    order = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    shape = analysis.graph.nodes[index].shape
    budget = max(1, int(analysis.max_memory // (COPIES * 8 * lower.shape[1] * len(lower))))
    new_lower, new_upper = lower.clone(), upper.clone()
    for part in order.split(budget, 1):
        unit = torch.zeros(len(lower), part.shape[1], lower.shape[1], dtype=lower.dtype)
        unit.scatter_(2, part[..., None], 1.0)
        unit = unit.view(len(lower), part.shape[1], *shape)
        found_lower, found_upper = analysis.least(index, unit), -analysis.least(index, -unit)
        new_lower.scatter_(1, part, torch.maximum(lower.gather(1, part), found_lower))
        new_upper.scatter_(1, part, torch.minimum(upper.gather(1, part), found_upper))
    # Rounding may cross bounds that coincide; the wider order is the sound one.
    crossed = new_lower > new_upper
    analysis.boxes[index] = (
        torch.where(crossed, lower, new_lower).view(-1, *shape),
        torch.where(crossed, upper, new_upper).view(-1, *shape),
    )


def _default_memory() -> float:
    """A quarter of the memory that is free now."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        free = 2**32
    return MEMORY_SHARE * free
