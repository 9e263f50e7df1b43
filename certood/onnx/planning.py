"""Finding out, when a file is read, which values depend on the image, on the number of images only, or on neither.

The graph is evaluated for several numbers of images at once: on shapes only (the meta device) where a value depends on the
image, and on numbers where it is known. So every operator is described once. A known integer that grows linearly with the
number of images is used as such; what grows in another way is refused.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certood.errors import CheckpointError
from certood.onnx.calls import OPERATORS, BatchAxis, ByImage, Call, Node, Reads, Static
from certood.onnx.graph import Graph
from certood.onnx.images import ImageLayout
from certood.onnx.network import OnnxNetwork, Step, outputs_of

# Numbers of images at which the graph is evaluated: a linear law is found from two and checked by the third.
PROBES = (2, 3, 5)
# A known value that an operator reads number by number may have so many. Of larger weights, planning needs the shape alone.
MOST_NUMBERS = 2**20


@dataclass(frozen=True)
class _Value:
    """A value of the graph for each number of images of `PROBES`.

    It is on the meta device where it depends on the image, or is known but large or computed from what is large. `outer` is
    that of its `BatchAxis`.
    """

    probes: tuple[Tensor, ...]
    known: bool
    outer: int = 1

    @property
    def constant(self) -> bool:
        """Whether it is known and the same for any number of images."""
        first = self.probes[0]
        return self.known and all(
            probe is first or (not probe.is_meta and torch.equal(probe, first)) for probe in self.probes
        )

    @property
    def batch_axis(self) -> BatchAxis | None:
        """Where the images lie in a value that depends on them, if they do along exactly one axis."""
        return None if self.known else self._growth

    @property
    def _growth(self) -> BatchAxis | None:
        """The axis whose size is a multiple of the number of images, if there is exactly one of another size for each."""
        shapes = [probe.shape for probe in self.probes]
        if len({len(shape) for shape in shapes}) != 1:
            return None
        grown = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
        if len(grown) != 1:
            return None
        sizes = [shape[grown[0]] for shape in shapes]
        multiple = sizes[0] // PROBES[0]
        linear = all(size == multiple * batch for size, batch in zip(sizes, PROBES, strict=True))
        return BatchAxis(grown[0], multiple, 1 if multiple % self.outer else self.outer) if linear else None

    def static(self, node: Node, index: int) -> Static | None:
        """Its numbers as a linear law of the number of images; None where it depends on the image."""
        if not self.known:
            return None
        if len({probe.shape for probe in self.probes}) != 1:
            raise node.error(
                f"input {index} ({node.inputs[index]!r}) has a shape that depends on the number of images; a constant is expected"
            )
        if self.probes[0].is_meta or self.probes[0].numel() > MOST_NUMBERS:
            raise node.error(
                f"input {index} ({node.inputs[index]!r}) has more than {MOST_NUMBERS} numbers, or is computed from so many; "
                "a smaller constant is expected"
            )
        flat = [probe.flatten().tolist() for probe in self.probes]
        slopes = [self._slope(node, index, numbers) for numbers in zip(*flat, strict=True)]
        constants = [
            number - slope * PROBES[0] if slope else number for number, slope in zip(flat[0], slopes, strict=True)
        ]
        return Static(tuple(self.probes[0].shape), tuple(constants), tuple(slopes))

    def by_image(self) -> ByImage | None:
        """Its integers as a law of the image, where its shape has the number of images along one axis; None otherwise."""
        growth, probe = self._growth, self.probes[0]
        if (
            not self.known
            or growth is None
            or probe.is_meta
            or probe.dtype != torch.int64
            or not 0 < probe.numel() <= MOST_NUMBERS
        ):
            return None
        each = [probe.unflatten(growth.axis, (-1, growth.multiple)).movedim(growth.axis, 0) for probe in self.probes]
        first, step = each[0][0], int((each[0][1] - each[0][0]).flatten()[0])
        if any(not torch.equal(image, first + step * place) for probe in each for place, image in enumerate(probe)):
            return None
        numbers = first.flatten().tolist()
        return ByImage(growth.axis, Static(tuple(first.shape), tuple(numbers), (0,) * len(numbers)), step)

    @staticmethod
    def _slope(node: Node, index: int, numbers: tuple[float, ...]) -> int:
        """How much a number grows with each image."""
        if all(number == numbers[0] or math.isnan(number) for number in numbers):
            return 0
        slope = (numbers[1] - numbers[0]) / (PROBES[1] - PROBES[0])
        law = [numbers[0] + slope * (batch - PROBES[0]) for batch in PROBES]
        if list(numbers) != law or not all(isinstance(number, int) for number in numbers) or slope != int(slope):
            raise node.error(
                f"input {index} ({node.inputs[index]!r}) depends on the number of images, and not linearly"
            )
        return int(slope)


@dataclass(frozen=True)
class _Planned:
    """A node after its evaluation: what it read, and what it gives."""

    step: Step
    reads: Reads


def plan(graph: Graph, layout: ImageLayout) -> OnnxNetwork:
    """The network of a graph; raises CheckpointError that names the node that cannot be evaluated, and why."""
    values = {name: _Value((_probe(value),) * len(PROBES), True) for name, value in graph.constants.items()}
    values[graph.input_name] = _Value(
        tuple(torch.empty(batch, *layout.network_shape, dtype=torch.float64, device="meta") for batch in PROBES), False
    )
    planned = [_evaluate(node, values) for node in graph.nodes]
    outputs = _check_output(graph, values)
    steps, needed = _reachable(graph, planned, values)
    constants = {name: graph.constants.get(name, values[name].probes[0]) for name in needed}
    return OnnxNetwork(steps, constants, graph.weights, layout, graph.input_name, graph.output_name, outputs)


def _probe(value: Tensor) -> Tensor:
    """A constant as planning takes it: in float64, and without its numbers where it is large."""
    if not value.is_floating_point():
        return value
    return value.to("meta" if value.numel() > MOST_NUMBERS else value.device, torch.float64)


def _evaluate(node: Node, values: dict[str, _Value]) -> _Planned:
    """Evaluate a node for every number of images, and add its outputs to the values."""
    if node.operator not in OPERATORS:
        raise node.error("there is no such operator here, and ONNX does not define it by others")
    missing = [name for name in node.inputs if name and name not in values]
    if missing:
        raise node.error(f"input {missing[0]!r} is computed by no node before it; the file is damaged or unsupported")
    inputs = [values[name] if name else None for name in node.inputs]
    if node.operator == "CastLike" and inputs[1] is not None:
        # Of the second input only the type counts, which no image changes.
        inputs[1] = _Value(tuple(torch.zeros((), dtype=probe.dtype) for probe in inputs[1].probes), True)
    known = all(value is None or value.known for value in inputs)
    plain = known and not any(value.probes[0].is_meta for value in inputs if value)
    axes = {index: axis for index, value in enumerate(inputs) if value and (axis := value.batch_axis)}
    static: dict[int, Static] = {}
    laws: dict[int, ByImage] = {}
    reads = Reads()

    def static_of(index: int) -> Static | None:
        value = inputs[index]
        if index not in static and value is not None:
            found = value.static(node, index)
            if found is None:
                return None
            static[index] = found
        return static[index]

    def by_image(index: int) -> ByImage | None:
        value = inputs[index]
        if index not in laws and value is not None and (law := value.by_image()):
            laws[index] = law
        return laws.get(index)

    found: list[dict[str, Tensor]] = []
    for place, batch in enumerate(PROBES):
        tensors = [None if value is None else _at(value, place, plain) for value in inputs]
        call = Call(
            node=node,
            values=tensors,
            batch=batch,
            dtype=torch.float64,
            device=torch.device("cpu" if plain else "meta"),
            batch_axes=axes,
            static_of=static_of,
            by_image=by_image,
            reads=reads,
        )
        try:
            found.append(outputs_of(node, OPERATORS[node.operator](call)))
        except CheckpointError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError) as error:
            shapes = ", ".join("none" if part is None else str(tuple(part.shape)) for part in tensors)
            raise node.error(
                f"cannot be evaluated for {batch} images, on inputs of shape {shapes} ({_first_line(error)})"
            ) from error
    _check_reads(node, reads)
    inherited = max((value.outer for value in inputs if value and not value.known), default=1)
    outer = inherited if reads.outer is None else reads.outer
    for name in found[0]:
        probes = tuple(part[name] for part in found)
        values[name] = _Value(probes, known or not any(probe.is_meta for probe in probes), outer)
    return _Planned(Step(node, static, laws, axes, frozenset(reads.tensors)), reads)


def _at(value: _Value, place: int, plain: bool) -> Tensor:
    """The value for one number of images; a known one beside one that has only a shape is a shape as well."""
    probe = value.probes[place]
    return probe if plain else probe.to("meta")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_reads(node: Node, reads: Reads) -> None:
    """Raise CheckpointError where an attribute or input has no reader: its meaning would be lost."""
    attributes = sorted(set(node.attributes) - reads.attributes)
    inputs = [index for index, name in enumerate(node.inputs) if name and index not in reads.inputs]
    if attributes:
        raise node.error(
            f"attribute {attributes[0]!r} = {node.attributes[attributes[0]]!r} is not known for this operator"
        )
    if inputs:
        raise node.error(f"input {inputs[0]} ({node.inputs[inputs[0]]!r}) is not known for this operator")


def _check_output(graph: Graph, values: Mapping[str, _Value]) -> int:
    """The number of logits; raises CheckpointError where the output is not one row of them for each image."""
    value = values.get(graph.output_name)
    if value is None:
        raise CheckpointError(f"no ONNX node computes the output {graph.output_name!r}")
    shapes = [tuple(probe.shape) for probe in value.probes]
    if value.known:
        raise CheckpointError(f"the ONNX network's output {graph.output_name!r} does not depend on the image")
    rows = all(len(shape) >= 2 and shape[0] == batch for shape, batch in zip(shapes, PROBES, strict=True))
    if not rows or len({shape[1:] for shape in shapes}) != 1 or any(size != 1 for size in shapes[0][2:]):
        raise CheckpointError(
            f"the ONNX network gives an output of shape {shapes[0]} for {PROBES[0]} images, expected ({PROBES[0]}, classes): it "
            "must treat images of a batch one by one, along the first axis"
        )
    return int(shapes[0][1])


def _is_computed(probe: Tensor) -> bool:
    """Whether a known value is computed again for every batch."""
    return probe.is_floating_point() or probe.is_meta


def _reachable(graph: Graph, planned: Sequence[_Planned], values: Mapping[str, _Value]) -> tuple[list[Step], list[str]]:
    """The steps that the output needs, in order, and the constants that those read as tensors.

    Integers that are known are constants; what is computed from floating-point constants is computed again for every batch,
    so that it follows the network's precision.
    """
    needed, last = {graph.output_name}, {graph.output_name}
    constants: dict[str, None] = {}
    steps: list[Step] = []
    for part in reversed(planned):
        node = part.step.node
        if not needed.intersection(node.outputs):
            continue
        wanted = [name for name in node.outputs if name in needed]
        if all(values[name].known and not _is_computed(values[name].probes[0]) for name in wanted):
            if all(values[name].constant for name in wanted):
                constants |= dict.fromkeys(wanted)
                continue
            if len({probe.shape for name in wanted for probe in values[name].probes}) == 1:
                raise node.error(
                    "the values of the network depend on the number of images through it, which they may not"
                )
        read = {node.inputs[index] for index in part.step.inputs}
        released = tuple(sorted(read - last - graph.constants.keys()))
        last |= read
        needed |= read
        constants |= dict.fromkeys(name for name in node.inputs if name in read and name in graph.constants)
        steps.append(replace(part.step, released=released))
    for step in reversed(steps):
        mixed = [values[name] for name in step.node.outputs if name in needed and not values[name].known]
        if any(len({probe.shape for probe in value.probes}) == 1 for value in mixed):
            raise step.node.error("mixes the images of a batch: its value has one shape, however many there are")
    found = [name for name in graph.constants if name in constants]
    return steps[::-1], found + [name for name in constants if name not in graph.constants]
