"""The methods: boxes of every node of a graph over a ball, by intervals, and by linear bounds where they are tighter."""

from dataclasses import replace

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Region, or_infinite
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.propagation import Analysis, outward_sum
from certood.analysis.bounds.linear.rounding import check_precision
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.memory import COPIES, default_memory, keep_freed_blocks, row_memory
from certood.analysis.bounds.operations.base import LinearOperation, Nonlinear, Rows
from certood.errors import CertoodError

METHODS = ("interval", "crown-ibp", "crown", "alpha-crown")
# Neurons of a layer times the numbers that a row of one takes: above it the slopes of these rows are not optimised, which takes
# a minute and more for an image.
INTERMEDIATE_WORK = 4_000_000


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
    keep_freed_blocks()
    budget = max_memory or default_memory()
    kind = _affordable(method, graph, len(ball), budget, dtype)
    instead_of = "" if kind == method else method
    return _analysed(Analysis(graph, ball, kind, budget, dtype, instead_of), iterations)


def _analysed(analysis: Analysis, iterations: int) -> Analysis:
    """Fill in the boxes, and the analysis by the method before."""
    graph, ball, kind = analysis.graph, analysis.ball, analysis.kind
    if kind in ("crown", "alpha-crown"):
        previous = METHODS[METHODS.index(kind) - 1]
        before = Analysis(graph, ball, previous, analysis.max_memory, analysis.dtype, centre_values=analysis.references)
        analysis.simpler = _analysed(before, 0)
    analysis.boxes[0] = (ball.lower, ball.upper) if analysis.simpler is None else analysis.simpler.boxes[0]
    affine = {0}
    linear_bounds = kind in ("crown", "alpha-crown")
    with torch.no_grad():
        for index, node in enumerate(graph.nodes[1:], start=1):
            known = _known(analysis, index)
            if not known:
                lower, upper = node.operation.interval([analysis.boxes[source] for source in node.inputs])
                analysis.boxes[index] = or_infinite(lower, -1), or_infinite(upper, 1)
                analysis.widths[index] = upper - lower
            box = analysis.boxes[index]
            if isinstance(node.operation, LinearOperation) and all(source in affine for source in node.inputs):
                affine.add(index)
                if ball.is_box or known:
                    continue
            readers = [graph.nodes[reader].operation for reader in graph.readers[index]]
            curved = [reader for reader in readers if isinstance(reader, Nonlinear)]
            if index in affine and (curved or index == len(graph.nodes) - 1):
                chosen = torch.ones_like(box[0], dtype=torch.bool)
            elif linear_bounds and curved:
                chosen = torch.stack([reader.unsettled(analysis.boxes[index]) for reader in curved]).any(0)
            else:
                continue
            analysis.iterations = iterations if kind == "alpha-crown" and _optimisable(graph, index) else 0
            _tighten(analysis, index, chosen.flatten(1))
    simpler = analysis.simpler
    if simpler is not None and all(box is simpler.boxes[index] for index, box in analysis.boxes.items()):
        # Nothing became tighter: it would bound the same rows by the same lines.
        analysis.simpler = simpler.simpler
    if linear_bounds and analysis.dtype != torch.float64:
        # What is asked of the logits is a few rows: they lose nothing to rounding.
        analysis = replace(
            analysis,
            dtype=torch.float64,
            centre_values=analysis.references,
            passages={},
            losses={},
            underflows={},
            doors={},
        )
    analysis.iterations = iterations if kind == "alpha-crown" else 0
    return analysis


def _optimisable(graph: Graph, index: int) -> bool:
    """Whether the slopes of rows of a node are worth optimising."""
    return graph.nodes[index].shape.numel() * graph.row_size(index, (1, 1)) <= INTERMEDIATE_WORK


def _known(analysis: Analysis, index: int) -> bool:
    """Take over what the analysis before knows of a node where nothing that it reads has become tighter since."""
    before = analysis.simpler
    if before is None or any(
        analysis.boxes[source] is not before.boxes[source] for source in analysis.graph.nodes[index].inputs
    ):
        return False
    analysis.boxes[index], analysis.widths[index] = before.boxes[index], before.widths[index]
    return True


def _affordable(method: str, graph: Graph, images: int, budget: float, dtype: torch.dtype) -> str:
    """The method, or a simpler one where a single row of the linear bounds of all images exceeds the budget."""
    row = images * row_memory(graph, dtype)
    if method != "interval" and row > budget:
        return "interval"
    # The ascent keeps every layer's coefficients.
    return "crown" if method == "alpha-crown" and row * len(graph.nodes) > budget else method


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
        middle = analysis.references[index].flatten(1).gather(1, part)
        fall, rise = _unit_changes(analysis, index, part).chunk(2, 1)
        new_lower.scatter_(1, part, torch.fmax(lower.gather(1, part), outward_sum(middle, fall)))
        new_upper.scatter_(1, part, torch.fmin(upper.gather(1, part), -outward_sum(-middle, rise)))
    # Rounding may cross bounds that coincide; the wider order is the sound one.
    crossed = new_lower > new_upper
    analysis.boxes[index] = (
        torch.where(crossed, lower, new_lower).view(-1, *shape),
        torch.where(crossed, upper, new_upper).view(-1, *shape),
    )


def _unit_changes(analysis: Analysis, index: int, neurons: Tensor) -> Tensor:
    """Lower bounds (N, 2R) of how far single neurons (N, R) of a node rise, and how far they fall, from their references."""
    node, operation = analysis.graph.nodes[index], analysis.operations[index]
    if isinstance(operation, LinearOperation):
        # What the node reads where it reads one thing linearly.
        shapes = [analysis.graph.nodes[source].shape for source in node.inputs]
        direct = operation.unit_rows(neurons, shapes, node.shape)
        if direct is not None:
            loss = analysis.residual(index).flatten(1).gather(1, neurons)
            return outward_sum(analysis.least_change(node.inputs[0], direct, both=True), -torch.cat([loss, loss], 1))
    return analysis.least_change(index, _units(neurons, node.shape, analysis.dtype), both=True)


def _units(neurons: Tensor, shape: torch.Size, dtype: torch.dtype) -> Rows:
    """The rows that read off single neurons (N, R) of a node."""
    if len(shape) == 3:
        return Windows.units(neurons, shape, dtype)
    unit = torch.zeros(*neurons.shape, shape.numel(), dtype=dtype)
    return unit.scatter_(2, neurons[..., None], 1.0).view(*neurons.shape, *shape)
