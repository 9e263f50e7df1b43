"""Bounds of every node of a graph over a ball: intervals forwards, linear functions backwards (CROWN).

Zhang et al., NeurIPS 2018 (arXiv 1811.00866); Xu et al., NeurIPS 2020 (arXiv 2002.12920). In float64; rows may be in
float32, with what rounding may cost subtracted (`rounding`).
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from certood.analysis.bounds.activations import RELU
from certood.analysis.bounds.ball import Bounds, Region
from certood.analysis.bounds.choices import Choices
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.operations import (
    Convolution,
    Curved,
    Elementwise,
    Interval,
    LinearOperation,
    Operation,
    Rows,
)
from certood.analysis.bounds.optimised import optimised_least
from certood.analysis.bounds.pairs import JointRelaxation
from certood.analysis.bounds.relaxations import Relaxation, relu_relaxation
from certood.analysis.bounds.rounding import (
    casting_loss,
    check_precision,
    linear_loss,
    operations_in,
    rounded_lines,
)
from certood.analysis.bounds.rows import magnitude, relaxed, summed
from certood.analysis.bounds.windows import Windows
from certood.errors import CertoodError

METHODS = ("interval", "crown-ibp", "crown", "alpha-crown")
MEMORY_SHARE = 0.25
# Coefficients, their relaxed copies and what a transposed convolution keeps stand in memory at once.
COPIES = 8
# More rows at once than fill so many bytes per layer gain nothing: what does not fit into the caches is slower.
CHUNK_BYTES = 2**21
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

    `kind` is one of METHODS, and `instead_of` the one that was asked for where it did not fit into `max_memory`. `lines`
    keeps the relaxations of elementwise nodes, whose boxes are final once something after them is bounded.

    With `iterations` above 0 the slopes of ReLU are optimised for every row that is bounded. Tighter boxes usually give
    tighter rows, but not always: `simpler` is the analysis by the method before, with which rows are intersected.
    """

    graph: Graph
    ball: Region
    kind: str
    max_memory: float
    dtype: torch.dtype = torch.float64
    instead_of: str = ""
    iterations: int = 0
    simpler: "Analysis | None" = None
    boxes: dict[int, Interval] = field(default_factory=dict)
    lines: dict[int, Relaxation] = field(default_factory=dict)
    losses: dict[int, Tensor | None] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """What computed the bounds, in words: also where another method was asked for."""
        return f"{self.kind} ({self.instead_of} exceeded the memory budget)" if self.instead_of else self.kind

    @cached_property
    def operations(self) -> Sequence[Operation]:
        """The operations of the graph in the precision of the rows."""
        return operations_in(self.graph, self.dtype)

    def logits(self) -> Bounds:
        """Bounds of the logits (N, K)."""
        lower, upper = self.boxes[len(self.graph.nodes) - 1]
        return Bounds(lower, upper, self.method)

    def rows(self, coefficients: Tensor, constant: Tensor | None = None) -> Bounds:
        """Bounds (N, M) of coefficients·f(x) + constant, for coefficients (N, M, K) and constant (N, M) or None."""
        shift = 0 if constant is None else constant
        lower, gained = self._lower(coefficients)
        negated, gained_above = self._lower(-coefficients)
        method = self.method
        if self.simpler is not None and gained + gained_above:
            method = f"{method} ({self.simpler.method} was tighter in {gained + gained_above} of {2 * lower.numel()})"
        return Bounds(_or_infinite(lower + shift, -1), _or_infinite(shift - negated, 1), method)

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K) of the logits."""
        return self._lower(coefficients)[0]

    def _lower(self, coefficients: Tensor) -> tuple[Tensor, int]:
        """The better of the linear bound, of the box of the logits and of the method before; how often that one won."""
        box = self.logits()
        lower = torch.einsum("nmk,nk->nm", coefficients.clamp_min(0), box.lower)
        lower = lower + torch.einsum("nmk,nk->nm", coefficients.clamp_max(0), box.upper)
        gained = 0
        if self.kind != "interval":
            lower = torch.maximum(lower, self.least(len(self.graph.nodes) - 1, coefficients))
        if self.simpler is not None:
            other = self.simpler.lower_rows(coefficients)
            gained = int((other > lower + 1e-9).sum())
            lower = torch.maximum(lower, other)
        return _or_infinite(lower, -1), gained

    def least(self, node: int, rows: Rows) -> Tensor:
        """Lower bounds (N, R) of rows (N, R, *shape) of a node, in chunks that keep to the memory budget."""
        size = max(other.shape.numel() for other in self.graph.nodes[: node + 1])
        chunk = max(1, int(self.max_memory // (COPIES * self.dtype.itemsize * size * len(self.ball))))
        if self.iterations:
            # The graph of the ascent keeps every layer's coefficients, and every row has slopes of its own.
            chunk = max(1, chunk // len(self.graph.nodes))
            dense = rows.dense() if isinstance(rows, Windows) else rows
            return torch.cat([optimised_least(self, node, part, self.iterations) for part in dense.split(chunk, 1)], 1)
        size = self.dtype.itemsize * self._width(node, rows) * len(self.ball)
        chunk = min(chunk, max(1, CHUNK_BYTES // size))
        parts = rows.split(chunk) if isinstance(rows, Windows) else rows.split(chunk, 1)
        return torch.cat([self.plain_least(node, part) for part in parts], 1)

    def _width(self, node: int, rows: Rows) -> int:
        """About how many numbers a row takes where it is widest: windows are small until they are joined."""
        if isinstance(rows, Windows):
            return 16 * max(
                shape[0] for shape in (part.shape for part in self.graph.nodes[: node + 1]) if len(shape) == 3
            )
        return max(other.shape.numel() for other in self.graph.nodes[: node + 1])

    def plain_least(self, node: int, rows: Rows) -> Tensor:
        """Lower bounds (N, R) of rows of a node with CROWN's own slopes, all at once."""
        reached, constant = self._propagated(node, rows)
        return _or_infinite(self.ball.least(reached) + constant, -1)

    def linear_lower(self, node: int, rows: Tensor, choices: Choices | None = None) -> LinearBound:
        """A linear function of the image that bounds rows (N, R, *shape) of a node from below over the ball."""
        reached, constant = self._propagated(node, rows, choices)
        dense = reached.dense() if isinstance(reached, Windows) else reached
        return LinearBound(dense.to(torch.float64), constant)

    def _propagated(self, node: int, rows: Rows, choices: Choices | None = None) -> tuple[Rows, Tensor]:
        """Rows of the image, and constants in float64, that bound rows of a node from below."""
        pending: dict[int, Rows] = {node: rows.to(self.dtype)}
        constant = torch.zeros(()).double() - self._lost(rows, partial(casting_loss, self.boxes[node]))
        for index in range(node, 0, -1):
            if index not in pending:
                continue
            parts, added = self._step(index, pending.pop(index), choices)
            constant = constant + added
            for source, part in zip(self.graph.nodes[index].inputs, parts, strict=True):
                if source in pending:
                    pending[source] = summed(pending[source], part)
                    constant = constant - self._lost(pending[source], partial(casting_loss, self.boxes[source]))
                else:
                    pending[source] = part
        return pending[0], constant

    def _step(self, index: int, own: Rows, choices: Choices | None) -> tuple[Sequence[Rows], Tensor]:
        """Rows of the inputs of a node, and constants, that bound rows of the node from below."""
        node = self.graph.nodes[index]
        shapes = [self.graph.nodes[source].shape for source in node.inputs]
        boxes = [self.boxes[source] for source in node.inputs]
        operation = self.operations[index]
        parts: Sequence[Rows]
        if isinstance(operation, Convolution) and isinstance(own, Tensor):
            own = Windows.whole(own)
        if isinstance(operation, LinearOperation):
            if isinstance(own, Windows):
                parts, added = operation.transpose_windows(own, shapes)
            else:
                parts, added = operation.transpose(own, shapes)
            return parts, added - self._lost(own, partial(self._linear_loss, index))
        if isinstance(operation, JointRelaxation):
            dense = own.dense() if isinstance(own, Windows) else own
            exact, added = operation.transpose_lower(dense.to(torch.float64), boxes, shapes)
            for part, box in zip(exact, boxes, strict=True):
                added = added - self._lost(part, partial(casting_loss, box))
            return [part.to(self.dtype) for part in exact], added
        assert isinstance(operation, Elementwise)
        before, added = relaxed(own, self._relaxation(index, operation, choices))
        if choices is not None and operation is RELU:
            source = node.inputs[0]
            choices.reached[source] = (own.dense() if isinstance(own, Windows) else own).detach()
            if source in choices.subtracted:
                before = summed(before, -choices.subtracted[source])
        return [before], added.to(torch.float64)

    def _lost(self, rows: Rows, loss: Callable[[], Tensor | None]) -> Tensor | float:
        """What rounding of a step may cost a bound of these rows: nothing is counted in float64."""
        plane = None if self.dtype == torch.float64 else loss()
        return 0.0 if plane is None else magnitude(rows, plane).to(torch.float64)

    def _linear_loss(self, index: int) -> Tensor | None:
        if index not in self.losses:
            node = self.graph.nodes[index]
            assert isinstance(node.operation, LinearOperation)
            self.losses[index] = linear_loss(node.operation, [self.boxes[source] for source in node.inputs], node.shape)
        return self.losses[index]

    def _relaxation(self, index: int, operation: Elementwise, choices: Choices | None) -> Relaxation:
        """Lines for the rows, in their precision."""
        source = self.graph.nodes[index].inputs[0]
        box = lower, upper = self.boxes[source]
        if operation is RELU and choices is not None:
            chosen = relu_relaxation(lower[:, None], upper[:, None], choices.slopes.get(source))
            return rounded_lines(chosen, box, self.dtype)
        if index not in self.lines:
            self.lines[index] = rounded_lines(operation.lines(lower, upper), box, self.dtype)
        return self.lines[index]


def _or_infinite(values: Tensor, sign: int) -> Tensor:
    """Not a number means nothing is known: infinity on the side of this sign."""
    return torch.where(values.isnan(), sign * math.inf, values)


def analyse(
    graph: Graph,
    ball: Region,
    method: str = "crown",
    *,
    iterations: int = 20,
    max_memory: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Analysis:
    """Boxes of every node over a ball.

    `interval` and `crown-ibp` propagate boxes; `crown` and `alpha-crown` tighten the box before every activation by linear
    bounds, of the neurons whose sign is not known (ReLU) or of all of them. `alpha-crown` optimises the slopes of every row
    in `iterations` steps, those of rows before an activation where INTERMEDIATE_WORK allows. For the norms 2 and 1 the box
    of whatever is affine in the image comes from the dual norm, elementwise operations first included. `max_memory` is in
    bytes; where not even one row fits into it, a method that needs less is used, and named. With `dtype` float32 rows take half
    the time and memory, and bounds are widened by what rounding may cost. Raises CertoodError for an unknown method or
    precision, or images of another shape.
    """
    if method not in METHODS:
        raise CertoodError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if tuple(ball.centre.shape[1:]) != tuple(graph.nodes[0].shape):
        raise CertoodError(
            f"the network takes images {tuple(graph.nodes[0].shape)}, got {tuple(ball.centre.shape[1:])}"
        )
    check_precision(dtype)
    budget = max_memory or default_memory()
    kind = _affordable(method, graph, len(ball), budget, dtype)
    analysis = Analysis(graph, ball, kind, budget, dtype, instead_of="" if kind == method else method)
    if kind in ("crown", "alpha-crown"):
        simpler = METHODS[METHODS.index(kind) - 1]
        analysis.simpler = analyse(graph, ball, simpler, max_memory=budget, dtype=dtype)
    analysis.boxes[0] = (ball.lower, ball.upper)
    affine = {0}
    readers = _curved_readers(graph)
    linear_bounds = kind in ("crown", "alpha-crown")
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
            analysis.iterations = iterations if kind == "alpha-crown" and work <= INTERMEDIATE_WORK else 0
            _tighten(analysis, index, chosen.flatten(1))
    analysis.iterations = iterations if kind == "alpha-crown" else 0
    return analysis


def row_memory(graph: Graph, dtype: torch.dtype) -> int:
    """Bytes that one row of linear bounds takes for one image."""
    return COPIES * dtype.itemsize * max(node.shape.numel() for node in graph.nodes)


def _affordable(method: str, graph: Graph, images: int, budget: float, dtype: torch.dtype) -> str:
    """The method, or a simpler one where a single row of the linear bounds of all images exceeds the budget."""
    row = images * row_memory(graph, dtype)
    if method != "interval" and row > budget:
        return "interval"
    # The ascent keeps every layer's coefficients.
    return "crown" if method == "alpha-crown" and row * len(graph.nodes) > budget else method


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
    budget = max(1, int(analysis.max_memory // (COPIES * analysis.dtype.itemsize * lower.shape[1] * len(lower))))
    new_lower, new_upper = lower.clone(), upper.clone()
    for part in order.split(budget, 1):
        found_lower, found_upper = _unit_bounds(analysis, index, part)
        new_lower.scatter_(1, part, torch.maximum(lower.gather(1, part), found_lower))
        new_upper.scatter_(1, part, torch.minimum(upper.gather(1, part), found_upper))
    # Rounding may cross bounds that coincide; the wider order is the sound one.
    crossed = new_lower > new_upper
    analysis.boxes[index] = (
        torch.where(crossed, lower, new_lower).view(-1, *shape),
        torch.where(crossed, upper, new_upper).view(-1, *shape),
    )


def _unit_bounds(analysis: Analysis, index: int, neurons: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of single neurons (N, R) of a node, by linear bounds of what the node reads where it reads one thing linearly."""
    node = analysis.graph.nodes[index]
    direct = None
    if isinstance(node.operation, LinearOperation):
        shapes = [analysis.graph.nodes[source].shape for source in node.inputs]
        # From the exact constants: what casting the rows costs is counted where they are cast, a cast constant would not be.
        direct = node.operation.unit_rows(neurons, shapes, node.shape)
    if direct is None:
        units = _units(neurons, node.shape, analysis.dtype)
        return analysis.least(index, units), -analysis.least(index, -units)
    rows, constant = direct
    (source,) = node.inputs
    return analysis.least(source, rows) + constant, constant - analysis.least(source, -rows)


def _units(neurons: Tensor, shape: torch.Size, dtype: torch.dtype) -> Rows:
    """The rows that read off single neurons (N, R) of a node."""
    if len(shape) == 3:
        return Windows.units(neurons, shape, dtype)
    unit = torch.zeros(*neurons.shape, shape.numel(), dtype=dtype)
    return unit.scatter_(2, neurons[..., None], 1.0).view(*neurons.shape, *shape)


def default_memory() -> float:
    """A quarter of the memory that is free now."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        free = 2**32
    return MEMORY_SHARE * free
