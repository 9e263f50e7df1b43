"""A user's network as a graph of operations: exported once, bound to its parameters whenever they change, and checked."""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from certood.analysis.bounds.calls import Call, Reference
from certood.analysis.bounds.decompositions import DECOMPOSITIONS
from certood.analysis.bounds.exporting import Exported, Place, Step, export
from certood.analysis.bounds.folding import folded
from certood.analysis.bounds.graph import Graph, Node
from certood.analysis.bounds.layouts import Layout
from certood.analysis.bounds.operations import Input
from certood.analysis.bounds.translation import TRANSLATORS
from certood.analysis.bounds.witness import check, check_own_precision
from certood.errors import CannotCertify, UnsupportedOperation

Note = Callable[[str, str, str], None]


def capture(model: nn.Module, example: Tensor, device: torch.device | str = "cpu") -> Graph:
    """The graph of a module in eval mode, for images like `example` (1, C, H, W); the module itself is left as it is.

    Exported and compared with the module on the CPU; the graph, and the copy of the module that it holds, are then on `device`.
    Raises UnsupportedOperation that names the operation and its line in the user's code, and CannotCertify for weights that
    are not finite, a module that torch.export cannot trace, or a graph that does not compute what the module does.
    """
    captured = Captured(export(model, example))
    with torch.no_grad():
        graph = captured.bind()
        check(captured.exported, graph, captured.translated())
        check_own_precision(model, captured.exported)
        if torch.device(device).type == "cpu":
            return graph
        moved = captured.bind(device=device)
        return replace(moved, module=copy.deepcopy(captured.exported.module).to(device))


@dataclass(frozen=True)
class Captured:
    """A network that is exported once, and can be bound to any values of its parameters.

    >>> captured = Captured(export(model, images[:1]))
    >>> graph = captured.bind(dict(model.named_parameters()))   # differentiable with respect to them
    """

    exported: Exported

    def bind(self, parameters: Mapping[str, Tensor] | None = None, *, device: torch.device | str = "cpu") -> Graph:
        """The graph with these values of parameters and buffers by name, and the captured values of all others.

        Everything is computed in the dtype and on the device of the given tensors (without any, in float64 on `device`), and
        gradients flow to them. The graph is not compared with the module again. Raises UnsupportedOperation as `capture`
        does, and CannotCertify for unknown names or several dtypes.
        """
        return replace(folded(self.translated(parameters, device)), module=self.exported.module)

    def translated(self, parameters: Mapping[str, Tensor] | None = None, device: torch.device | str = "cpu") -> Graph:
        """The graph with a node for every call, before affine chains are folded."""
        return _translated(self.exported, parameters or {}, device=device)


@dataclass(frozen=True)
class Listed:
    """An operation of a network, where it stands in the user's code, and why it cannot be bounded (empty if it can)."""

    name: str
    source: str
    problem: str


def list_operations(model: nn.Module, example: Tensor) -> list[Listed]:
    """Every operation of a module that depends on the image, supported or not; raises CannotCertify as `capture` does."""
    found: list[Listed] = []

    def note(name: str, source: str, problem: str) -> None:
        found.append(Listed(name, source, problem))

    with torch.no_grad():
        _translated(export(model, example), {}, note)
    return found


def supported_operations() -> Sequence[str]:
    """Names of the ATen operations that can be bounded."""
    return sorted({*TRANSLATORS, *DECOMPOSITIONS})


def _translated(
    exported: Exported,
    parameters: Mapping[str, Tensor],
    note: Note | None = None,
    device: torch.device | str = "cpu",
) -> Graph:
    precision = _precision(exported, parameters, torch.device(device))
    values: dict[str, Any] = {}
    for name, stored in exported.stored.items():
        tensor = parameters.get(stored, exported.constants[stored])
        # Constants in other precisions than the network's stay in them: what it computes of them alone is rounded there.
        own = stored in parameters or tensor.dtype == torch.float64
        values[name] = tensor.to(precision) if own and tensor.is_floating_point() else tensor.to(precision.device)
    nodes = [Node("image", Input(), (), exported.shape, "")]
    values[exported.image] = Reference(0, Layout(torch.Size((1, *exported.shape))))
    for step in exported.steps:
        if step.target is operator.getitem:
            values[step.name] = _picked(step, values)
        elif step.of_image:
            values[step.name] = _appended(step, values, nodes, precision, note)
        else:
            values[step.name] = _constant(step, values, precision)
    results = [values[name] for name in exported.results]
    last = results[0] if len(results) == 1 and isinstance(results[0], Reference) else None
    if note is None and (last is None or not last.layout.is_plain or len(nodes[last.index].shape) != 1):
        raise CannotCertify("the network must return one tensor of logits (N, K)")
    return Graph(_reachable(nodes, last.index) if last is not None else (), dtype=precision.dtype)


def _precision(exported: Exported, parameters: Mapping[str, Tensor], device: torch.device) -> Tensor:
    unknown = parameters.keys() - exported.constants.keys()
    if unknown:
        raise CannotCertify(f"the network has no parameters or buffers named {', '.join(sorted(unknown)[:5])}")
    kinds = {(value.dtype, value.device) for value in parameters.values() if value.is_floating_point()}
    if len(kinds) > 1:
        raise CannotCertify(f"parameters of one dtype on one device expected, got {sorted(map(str, kinds))}")
    dtype, place = kinds.pop() if kinds else (torch.float64, device)
    return torch.empty(0, dtype=dtype, device=place)


def _resolved(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, Place):
        return values[argument.name]
    if isinstance(argument, (list, tuple)):
        return type(argument)(_resolved(part, values) for part in argument)
    return argument


def _picked(step: Step, values: Mapping[str, Any]) -> Any:
    """One of several values; of an operation on the image only the first is there."""
    several, index = (_resolved(part, values) for part in step.arguments)
    if isinstance(several, Reference):
        return several if index == 0 else None
    return several[index]


def _constant(step: Step, values: Mapping[str, Any], precision: Tensor) -> Any:
    """The value of a call that does not depend on the image, in the precision of the graph where that is the network's."""
    keywords = {name: _resolved(value, values) for name, value in step.keywords.items()}
    if isinstance(keywords.get("device"), torch.device):
        keywords["device"] = precision.device
    found = step.target(*_resolved(step.arguments, values), **keywords)
    return found.to(precision) if step.dtype == torch.float64 and isinstance(found, Tensor) else found


def _appended(
    step: Step, values: Mapping[str, Any], nodes: list[Node], precision: Tensor, note: Note | None
) -> Reference:
    """The value of a call that depends on the image; with a note, of an unsupported one too."""
    try:
        found = _called(step, values, nodes, precision)
    except UnsupportedOperation as error:
        if note is None:
            raise UnsupportedOperation(
                f"{error}; it stands at {step.source or 'an unknown place'}. "
                "Replace it by supported operations (certood.analysis.bounds.supported_operations())"
            ) from None
        note(str(step.target), step.source, str(error).removeprefix(f"operation {step.target} "))
        layout = step.layout or Layout(torch.Size((1,)))
        nodes.append(Node(step.name, Input(), (), layout.sample, step.source))
        return Reference(len(nodes) - 1, layout)
    if note is not None:
        note(str(step.target), step.source, "")
    return found


def _called(step: Step, values: Mapping[str, Any], nodes: list[Node], precision: Tensor) -> Reference:
    if step.operation not in TRANSLATORS:
        raise UnsupportedOperation(f"operation {step.target} has no sound bound here")
    if step.layout is None:
        raise UnsupportedOperation(f"operation {step.target} is not supported where it mixes images of a batch")
    arguments = {name: _resolved(value, values) for name, value in step.named.items()}
    call = Call(step, arguments, step.layout, nodes, precision)
    if len({part.layout.axis - len(part.layout.shape) for part in call.inputs}) > 1:
        raise call.refusal("of activations whose batch axes differ")
    try:
        found = TRANSLATORS[step.operation](call)
    except UnsupportedOperation as error:
        if str(error).startswith("operation "):
            raise
        raise call.refusal(str(error)) from None
    call.check_all_read()
    return found if isinstance(found, Reference) else call.append(found, call.inputs)


def _reachable(nodes: list[Node], last: int) -> tuple[Node, ...]:
    """Only what the logits depend on, renumbered."""
    needed, waiting = {0}, [last]
    while waiting:
        index = waiting.pop()
        if index not in needed:
            needed.add(index)
            waiting += nodes[index].inputs
    order = {old: new for new, old in enumerate(sorted(needed))}
    return tuple(
        Node(node.name, node.operation, tuple(order[source] for source in node.inputs), node.shape, node.source)
        for index, node in enumerate(nodes)
        if index in needed
    )
