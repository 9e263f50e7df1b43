"""From a user's module to a graph of operations, by torch.export.

torch.export (not torch.fx): it traces any Python in the forward method, reports where in the user's code an operation
stands, and gives one small set of ATen operations for methods, functions and modules alike. The batch axis is dynamic, so
the graph takes any batch size afterwards.
"""

import copy
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from certood.analysis.bounds.folding import folded
from certood.analysis.bounds.graph import Graph, Node
from certood.analysis.bounds.operations.base import Input, Monotone
from certood.analysis.bounds.translation import TRANSLATORS, Call, Reference
from certood.errors import CannotCertify, UnsupportedOperation

Note = Callable[[str, str, str], None]
SPLITS = ("split", "split_with_sizes", "chunk")
IDENTITIES = ("dropout", "clone", "contiguous", "alias", "detach", "_to_copy", "to", "lift_fresh_copy")


def capture(model: nn.Module, example: Tensor) -> Graph:
    """The graph of a module in eval mode, for images like `example` (1, C, H, W); the module itself is left as it is.

    Raises UnsupportedOperation that names the operation and its line in the user's code, and CannotCertify for weights that
    are not finite or a module that torch.export cannot trace.
    """
    plain, exported = _exported(model, example)
    return folded(replace(_translate(exported), module=plain))


@dataclass(frozen=True)
class Listed:
    """An operation of a network, where it stands in the user's code, and why it cannot be bounded (empty if it can)."""

    name: str
    source: str
    problem: str


def list_operations(model: nn.Module, example: Tensor) -> list[Listed]:
    """Every operation of a module that depends on the image, supported or not; raises CannotCertify as `capture` does."""
    exported = _exported(model, example)[1]
    found: list[Listed] = []

    def note(name: str, source: str, problem: str) -> None:
        found.append(Listed(name, source, problem))

    _translate(exported, note)
    return found


def _exported(model: nn.Module, example: Tensor) -> tuple[nn.Module, Any]:
    """A copy of the module in eval mode and float64, and its ATen graph with a dynamic batch axis."""
    broken = [
        name for name, value in model.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise CannotCertify(f"weights are infinite or not a number: {', '.join(broken[:5])}")
    plain = copy.deepcopy(model).to("cpu", torch.float64).eval().requires_grad_(False)
    # Two different images: batch sizes 0 and 1 are special to torch.export.
    images = example[:1].detach().to("cpu", torch.float64).expand(2, *example.shape[1:]).contiguous()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                plain, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**20)},), strict=False
            ).run_decompositions({})
    except Exception as error:
        raise CannotCertify(
            f"torch.export cannot trace {type(model).__name__}: {str(error).strip().splitlines()[0]}; "
            "a network must be a fixed sequence of tensor operations for any batch size"
        ) from error
    return plain, exported


def _translate(exported: Any, note: Note | None = None) -> Graph:
    constants = {**exported.state_dict, **exported.constants}
    signature = exported.graph_signature
    stored = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    nodes: list[Node] = []
    values: dict[str, Any] = {}
    last: Reference | None = None
    for item in exported.graph.nodes:
        if item.op == "placeholder":
            if item.name in stored:
                tensor = constants[stored[item.name]]
                values[item.name] = tensor.to(torch.float64) if tensor.is_floating_point() else tensor
            else:
                nodes.append(Node("image", Input(), (), item.meta["val"].shape[1:], ""))
                values[item.name] = Reference(0)
        elif item.op == "call_function":
            values[item.name] = _call(item, values, nodes, note)
        elif item.op == "output":
            found = [values[part.name] for part in item.args[0]]
            last = found[0] if len(found) == 1 and isinstance(found[0], Reference) else None
    if note is None and (last is None or len(nodes[last.index].shape) != 1):
        raise CannotCertify("the network must return one tensor of logits (N, K)")
    return Graph(_reachable(nodes, last.index) if last is not None else ())


def _call(item: Any, values: dict[str, Any], nodes: list[Node], note: Note | None) -> Any:
    """Append the node of one ATen call, or compute its value at once where it does not depend on the image."""

    def resolve(argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return values[argument.name]
        if isinstance(argument, (list, tuple)):
            return type(argument)(resolve(part) for part in argument)
        return argument

    arguments = tuple(resolve(argument) for argument in item.args)
    keywords = {name: resolve(value) for name, value in item.kwargs.items()}
    flat = _references((*arguments, *keywords.values()))
    target = str(item.target)
    if item.target is operator.getitem:
        several = arguments[0]
        return several[arguments[1]] if isinstance(several, tuple) else several if arguments[1] == 0 else None
    value = item.meta.get("val")
    shape = getattr(value[0] if isinstance(value, (list, tuple)) else value, "shape", None)
    if "sym_size" in target or shape is None or target.startswith("aten._assert"):
        return None
    if not flat:
        try:
            return item.target(*arguments, **keywords)
        except (RuntimeError, TypeError) as error:
            raise UnsupportedOperation(
                f"operation {target} depends on the batch size, which a bound may not; it stands at {_source(item)}"
            ) from error
    name = target.removeprefix("aten.").rsplit(".", 1)[0].removesuffix("_")
    if name in IDENTITIES:
        return flat[0]
    if name in SPLITS:
        return _parts(item, flat[0], [tuple(part.shape) for part in value], nodes, note)
    call = Call(
        name, (*arguments, *keywords.values()), torch.Size(shape[1:]), tuple(nodes[part.index].shape for part in flat)
    )
    return _appended(item, call, flat, nodes, note)


def _appended(item: Any, call: Call, inputs: Sequence[Reference], nodes: list[Node], note: Note | None) -> Reference:
    """The node of a call that depends on the image, appended; with a note, unsupported ones too."""
    target, source = str(item.target), _source(item)
    try:
        if call.target not in TRANSLATORS:
            raise UnsupportedOperation(f"operation {target} has no sound bound here")
        operation = TRANSLATORS[call.target](call)
    except UnsupportedOperation as error:
        if note is None:
            raise UnsupportedOperation(
                f"{error}; it stands at {source or 'an unknown place'}. "
                "Replace it by supported operations (certood.analysis.bounds.supported_operations())"
            ) from None
        note(target, source, str(error).removeprefix(f"operation {target} ").removeprefix(f"operation {call.target} "))
        nodes.append(Node(item.name, Input(), (), call.shape, source))
        return Reference(len(nodes) - 1)
    if note is not None:
        note(target, source, "")
    nodes.append(Node(item.name, operation, tuple(part.index for part in inputs), call.shape, source))
    return Reference(len(nodes) - 1)


def _parts(
    item: Any, whole: Reference, shapes: Sequence[Sequence[Any]], nodes: list[Node], note: Note | None
) -> tuple[Reference, ...]:
    """A node for each part of an activation that is split along an axis of a sample."""
    axis = item.args[2] if len(item.args) > 2 else 0
    axis %= len(shapes[0])
    source = _source(item)
    if axis == 0:
        raise UnsupportedOperation(
            f"operation {item.target} splits the batch, which a bound may not; it stands at {source}"
        )
    found, start = [], 0
    for shape in shapes:
        size = int(shape[axis])

        def narrow(x: Tensor, start: int = start, size: int = size) -> Tensor:
            return x.narrow(axis, start, size)

        nodes.append(Node(item.name, Monotone(narrow, 0), (whole.index,), torch.Size(shape[1:]), source))
        found.append(Reference(len(nodes) - 1))
        start += size
    if note is not None:
        note(str(item.target), source, "")
    return tuple(found)


def _references(arguments: Any) -> list[Reference]:
    if isinstance(arguments, Reference):
        return [arguments]
    if isinstance(arguments, (list, tuple)):
        return [found for part in arguments for found in _references(part)]
    return []


def _source(item: Any) -> str:
    """The innermost line of the user's code, from the stack that torch.export recorded."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.*)', item.meta.get("stack_trace") or "")
    own = [frame for frame in frames if "/torch/" not in frame[0]]
    if not (own or frames):
        return ""
    path, line, function, text = (own or frames)[-1]
    return f"{path}:{line} in {function}: {text.strip()}"


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


def supported_operations() -> Sequence[str]:
    """Names of the ATen operations that can be bounded."""
    return sorted((*TRANSLATORS, *SPLITS))
