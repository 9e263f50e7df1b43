"""The methods: boxes of every node of a graph over a ball, by intervals, and by linear bounds where they are tighter."""

from dataclasses import replace

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Region, or_infinite
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.analysis import Analysis
from certood.analysis.bounds.linear.full_precision import check_precision
from certood.analysis.bounds.linear.nodes import NodeBounds
from certood.analysis.bounds.linear.optimised import Ascent
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.memory import COPIES, default_memory, keep_freed_blocks, row_memory
from certood.analysis.bounds.operations.base import LinearOperation, Rows
from certood.analysis.bounds.operations.flattening import flat
from certood.analysis.bounds.operations.precision import outward_sum
from certood.analysis.bounds.outer import OuterBoxes
from certood.errors import CertoodError

METHODS = ("interval", "crown-ibp", "crown", "alpha-crown")
# Those that tighten the boxes before activations by linear bounds.
TIGHTENING = ("crown", "alpha-crown")
# Neurons of a layer times the numbers that a row of one takes: above the first, rows share their slopes, above the second,
# slopes are not optimised, which would take minutes for an image.
OWN_SLOPES, SHARED_SLOPES = 4_000_000, 20_000_000


def analyse(
    graph: Graph,
    ball: Region,
    method: str = "crown",
    *,
    iterations: int = 20,
    max_memory: float | None = None,
    dtype: torch.dtype = torch.float64,
    outer: OuterBoxes | None = None,
) -> Analysis:
    """Boxes of every node over a ball.

    `interval` and `crown-ibp` propagate boxes; `crown` and `alpha-crown` tighten the box before every activation by linear
    bounds, of the neurons whose sign is not known (ReLU) or of all of them. `alpha-crown` optimises the slopes of every row
    in `iterations` steps; rows before an activation share theirs above OWN_SLOPES, and keep CROWN's above SHARED_SLOPES. For
    the norms 2 and 1 the box of whatever is affine in the image comes from the dual norm, elementwise operations first
    included. `max_memory` is in bytes; where not even one row fits into it, a method that needs less is used, and named. With
    `dtype` float32 rows take half the time and memory, and bounds are widened by what rounding may cost. `outer` is what holds
    over balls that contain these: neurons that it settles are not bounded again. Raises CertoodError for an unknown method or
    precision, or images of another shape.
    """
    if method not in METHODS:
        raise CertoodError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if tuple(ball.centre.shape[1:]) != tuple(graph.nodes[0].shape):
        raise CertoodError(
            f"the network takes images {tuple(graph.nodes[0].shape)}, got {tuple(ball.centre.shape[1:])}"
        )
    check_precision(dtype, ball.centre.device)
    keep_freed_blocks()
    budget = max_memory or default_memory()
    kind = _affordable(method, graph, len(ball), budget, dtype)
    instead_of = "" if kind == method else method
    return _analysed(Analysis(NodeBounds(graph, ball), kind, budget, dtype, instead_of), iterations, outer)


def _analysed(analysis: Analysis, iterations: int, outer: OuterBoxes | None) -> Analysis:
    """Fill in the boxes, node by node, and the analysis by the method before."""
    graph, ball, kind = analysis.graph, analysis.ball, analysis.kind
    if kind in TIGHTENING:
        before = NodeBounds(graph, ball, analysis.references, residuals=analysis.nodes.residuals)
        previous = METHODS[METHODS.index(kind) - 1]
        analysis.simpler = _analysed(Analysis(before, previous, analysis.max_memory, analysis.dtype), 0, outer)
    analysis.boxes[0] = (ball.lower, ball.upper) if analysis.simpler is None else analysis.simpler.boxes[0]
    affine = {0}
    with torch.no_grad():
        for index, node in enumerate(graph.nodes[1:], start=1):
            known = _enclose(analysis, index, outer)
            if isinstance(node.operation, LinearOperation) and all(source in affine for source in node.inputs):
                affine.add(index)
                if ball.is_box or known:
                    continue
            chosen = _worth_tightening(analysis, index, affine=index in affine)
            if chosen is not None:
                analysis.ascent = _ascent(graph, index, iterations) if kind == "alpha-crown" else None
                _tighten(analysis, index, flat(chosen))
    simpler = analysis.simpler
    if simpler is not None and all(box is simpler.boxes[index] for index, box in analysis.boxes.items()):
        # Nothing became tighter: it would bound the same rows by the same lines.
        analysis.simpler = simpler.simpler
    if kind in TIGHTENING and analysis.dtype != torch.float64:
        # What is asked of the logits is a few rows: they lose nothing to rounding.
        analysis = replace(analysis, dtype=torch.float64)
    analysis.ascent = Ascent(iterations) if kind == "alpha-crown" and iterations else None
    return analysis


def _enclose(analysis: Analysis, index: int, outer: OuterBoxes | None) -> bool:
    """Give a node the box of its interval, within the outer one, or that of the analysis before: whether it is the latter.

    That is where nothing that the node reads has become tighter since.
    """
    nodes, before = analysis.nodes, analysis.simpler
    node = nodes.graph.nodes[index]
    if before is not None and all(nodes.boxes[source] is before.boxes[source] for source in node.inputs):
        nodes.boxes[index], nodes.widths[index] = before.boxes[index], before.nodes.widths[index]
        return True
    lower, upper = node.operation.interval([nodes.boxes[source] for source in node.inputs])
    box = or_infinite(lower, -1), or_infinite(upper, 1)
    nodes.boxes[index] = box if outer is None else outer.intersected(index, box)
    nodes.widths[index] = upper - lower
    return False


def _worth_tightening(analysis: Analysis, index: int, *, affine: bool) -> Tensor | None:
    """The neurons of a node, by a mask (N, *shape), of which linear bounds are worth their time; None where there are none.

    Of a node that is affine in the image these are all that something curved or nobody reads; of others, by the methods that
    tighten, those whose bounds decide how tight the relaxation of a reader is.
    """
    graph, box = analysis.graph, analysis.boxes[index]
    curved = graph.curved_readers.get(index, [])
    if affine and (curved or index == len(graph.nodes) - 1):
        return torch.ones_like(box[0], dtype=torch.bool)
    if analysis.kind in TIGHTENING and curved:
        return torch.stack([reader.unsettled(box) for reader in curved]).any(0)
    return None


def _ascent(graph: Graph, index: int, iterations: int) -> Ascent | None:
    """How the slopes of the rows of a node are optimised."""
    work = graph.nodes[index].shape.numel() * graph.row_size(index, (1, 1))
    return Ascent(iterations, shared=work > OWN_SLOPES) if iterations and work <= SHARED_SLOPES else None


def _affordable(method: str, graph: Graph, images: int, budget: float, dtype: torch.dtype) -> str:
    """The method, or a simpler one where a single row of the linear bounds of all images exceeds the budget."""
    row = images * row_memory(graph, dtype)
    if method != "interval" and row > budget:
        return "interval"
    # The ascent keeps every layer's coefficients.
    return "crown" if method == "alpha-crown" and row * len(graph.nodes) > budget else method


def _tighten(analysis: Analysis, index: int, chosen: Tensor) -> None:
    """Intersect the box of a node with linear bounds of the neurons in a mask (N, D)."""
    lower, upper = (flat(bound) for bound in analysis.boxes[index])
    most = int(chosen.sum(1).max())
    if not most:
        return
    # Every image has its own neurons to bound; shorter lists are filled up with neurons that are bounded once more.
    order = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    shape = analysis.graph.nodes[index].shape
    budget = max(1, int(analysis.max_memory // (COPIES * analysis.dtype.itemsize * lower.shape[1] * len(lower))))
    new_lower, new_upper = lower.clone(), upper.clone()
    for part in order.split(budget, 1):
        middle = flat(analysis.references[index]).gather(1, part)
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
    node, operation = analysis.graph.nodes[index], analysis.backward.operations[index]
    if isinstance(operation, LinearOperation):
        # What the node reads where it reads one thing linearly.
        direct = operation.unit_rows(neurons, analysis.nodes.input_shapes(index), node.shape)
        if direct is not None:
            loss = flat(analysis.nodes.residual(index)).gather(1, neurons)
            return outward_sum(analysis.least_change(node.inputs[0], direct, both=True), -torch.cat([loss, loss], 1))
    return analysis.least_change(index, _units(neurons, node.shape, analysis.dtype), both=True)


def _units(neurons: Tensor, shape: torch.Size, dtype: torch.dtype) -> Rows:
    """The rows that read off single neurons (N, R) of a node."""
    if len(shape) == 3:
        return Windows.units(neurons, shape, dtype)
    unit = torch.zeros(*neurons.shape, shape.numel(), dtype=dtype, device=neurons.device)
    return unit.scatter_(2, neurons[..., None], 1.0).view(*neurons.shape, *shape)
