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
from torch.nn import functional as F

from certood.analysis.bounds import activations
from certood.analysis.bounds.graph import Graph, Node
from certood.analysis.bounds.operations import (
    ChannelAffine,
    Concatenation,
    Convolution,
    Input,
    Linear,
    Monotone,
    Operation,
    WeightedSum,
)
from certood.analysis.bounds.pairs import MaxPool, Product
from certood.errors import CannotCertify, UnsupportedOperation


@dataclass(frozen=True)
class Call:
    """An ATen call under translation: arguments are numbers, constant tensors in float64, or `Reference`s to nodes."""

    target: str
    arguments: tuple[Any, ...]
    shape: torch.Size
    input_shapes: tuple[torch.Size, ...]


@dataclass(frozen=True)
class Reference:
    """An argument that depends on the image: the index of its node."""

    index: int


Translator = Callable[[Call], Operation]
Note = Callable[[str, str, str], None]


def capture(model: nn.Module, example: Tensor) -> Graph:
    """The graph of a module in eval mode, for images like `example` (1, C, H, W); the module itself is left as it is.

    Raises UnsupportedOperation that names the operation and its line in the user's code, and CannotCertify for weights that
    are not finite or a module that torch.export cannot trace.
    """
    plain, exported = _exported(model, example)
    return replace(_translate(exported), module=plain)


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
        return arguments[0] if arguments[1] == 0 else None
    value = item.meta.get("val")
    shape = getattr(value[0] if isinstance(value, (list, tuple)) else value, "shape", None)
    if "sym_size" in target or shape is None or target.startswith("aten._assert"):
        return None
    source = _source(item)
    if not flat:
        try:
            return item.target(*arguments, **keywords)
        except (RuntimeError, TypeError) as error:
            raise UnsupportedOperation(
                f"operation {target} depends on the batch size, which a bound may not; it stands at {source}"
            ) from error
    name = target.removeprefix("aten.").rsplit(".", 1)[0].removesuffix("_")
    identical = name in ("dropout", "clone", "contiguous", "alias", "detach", "_to_copy", "to", "lift_fresh_copy")
    if identical:
        return flat[0]
    call = Call(
        name, (*arguments, *keywords.values()), torch.Size(shape[1:]), tuple(nodes[part.index].shape for part in flat)
    )
    try:
        if name not in TRANSLATORS:
            raise UnsupportedOperation(f"operation {target} has no sound bound here")
        operation = TRANSLATORS[name](call)
    except UnsupportedOperation as error:
        if note is None:
            raise UnsupportedOperation(
                f"{error}; it stands at {source or 'an unknown place'}. "
                "Replace it by supported operations (certood.analysis.bounds.supported_operations())"
            ) from None
        note(target, source, str(error).removeprefix(f"operation {target} ").removeprefix(f"operation {name} "))
        nodes.append(Node(item.name, Input(), (), call.shape, source))
        return Reference(len(nodes) - 1)
    if note is not None:
        note(target, source, "")
    nodes.append(Node(item.name, operation, tuple(part.index for part in flat), call.shape, source))
    return Reference(len(nodes) - 1)


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


def _pair(value: Any, default: int = 0) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    numbers = [int(number) for number in value] or [default]
    return numbers[0], numbers[-1]


def _argument(call: Call, position: int, default: Any) -> Any:
    return call.arguments[position] if len(call.arguments) > position else default


def _refuse(call: Call, why: str) -> UnsupportedOperation:
    return UnsupportedOperation(f"operation {call.target} is not supported {why}")


def _convolution(call: Call) -> Operation:
    weight, bias = call.arguments[1], _argument(call, 2, None)
    stride, padding, dilation, groups = (_argument(call, place, one) for place, one in ((3, 1), (4, 0), (5, 1), (6, 1)))
    if isinstance(padding, str) or isinstance(weight, Reference) or weight.ndim != 4:
        raise _refuse(call, "with a padding given by name or a weight that depends on the image")
    return Convolution(weight, bias, _pair(stride, 1), _pair(padding), _pair(dilation, 1), groups)


def _linear(call: Call) -> Operation:
    if any(isinstance(part, Reference) for part in call.arguments[1:]):
        raise _refuse(call, "with a weight that depends on the image")
    return Linear(call.arguments[1], _argument(call, 2, None))


def _batch_norm(call: Call) -> Operation:
    _, weight, bias, mean, variance = call.arguments[:5]
    epsilon = next(part for part in reversed(call.arguments) if isinstance(part, float))
    scale = torch.rsqrt(variance + epsilon) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    shape = (-1, *[1] * (len(call.shape) - 1))
    return ChannelAffine(scale.view(shape), shift.view(shape))


def _per_sample(constant: Tensor, call: Call) -> Tensor:
    """A constant as it stands against one sample: without a batch axis of one."""
    if constant.ndim > len(call.shape):
        if constant.shape[0] != 1:
            raise _refuse(call, "with a constant that differs between the images of a batch")
        constant = constant[0]
    return constant.to(torch.float64)


def _sum(sign: float) -> Translator:
    def translate(call: Call) -> Operation:
        one, two, *rest = call.arguments
        factor = sign * (rest[0] if rest else 1)
        if isinstance(one, Reference) and isinstance(two, Reference):
            return WeightedSum(1.0, float(factor))
        constant = torch.as_tensor(two if isinstance(one, Reference) else one, dtype=torch.float64)
        constant = _per_sample(constant, call)
        if isinstance(one, Reference):
            return ChannelAffine(torch.ones(()).double(), factor * constant)
        return ChannelAffine(torch.tensor(float(factor)).double(), constant)

    return translate


def _reverse_subtraction(call: Call) -> Operation:
    return ChannelAffine(torch.tensor(-1.0).double(), _per_sample(torch.as_tensor(call.arguments[1]).double(), call))


def _multiplication(call: Call) -> Operation:
    one, two = call.arguments[:2]
    if isinstance(one, Reference) and isinstance(two, Reference):
        if one == two:
            raise _refuse(call, "as the square of an activation")
        return Product()
    constant = _per_sample(torch.as_tensor(two if isinstance(one, Reference) else one, dtype=torch.float64), call)
    return ChannelAffine(constant, torch.zeros(()).double())


def _division(call: Call) -> Operation:
    one, two = call.arguments[:2]
    if not isinstance(one, Reference) or isinstance(two, Reference):
        raise _refuse(call, "with a divisor that depends on the image")
    divisor = _per_sample(torch.as_tensor(two, dtype=torch.float64), call)
    return ChannelAffine(1 / divisor, torch.zeros(()).double())


def _negation(call: Call) -> Operation:
    return ChannelAffine(torch.tensor(-1.0).double(), torch.zeros(()).double())


def _reshaping(call: Call) -> Operation:
    shape = tuple(call.shape)
    if torch.Size(shape).numel() != call.input_shapes[0].numel():
        raise _refuse(call, "where it mixes images of a batch")
    return Monotone(lambda x: x.reshape(len(x), *shape))


def _axis(axis: int, call: Call) -> int:
    """An axis of the batch tensor, made non-negative; the batch axis itself is refused."""
    positive = axis % (len(call.input_shapes[0]) + 1)
    if positive == 0:
        raise _refuse(call, "along the batch axis")
    return positive


def _permutation(call: Call) -> Operation:
    order = [axis % (len(call.shape) + 1) for axis in call.arguments[1]]
    if order[0] != 0:
        raise _refuse(call, "where it moves the batch axis")
    return Monotone(lambda x: x.permute(order))


def _transposition(call: Call) -> Operation:
    one, two = _axis(call.arguments[1], call), _axis(call.arguments[2], call)
    return Monotone(lambda x: x.transpose(one, two))


def _slice(call: Call) -> Operation:
    raw = call.arguments[1] if len(call.arguments) > 1 else 0
    start, end, step = (_argument(call, place, default) for place, default in ((2, None), (3, None), (4, 1)))
    if raw == 0 and start in (None, 0) and (end is None or end >= 2**31):
        return Monotone(lambda x: x)
    axis = _axis(raw, call)
    return Monotone(lambda x: x[(slice(None),) * axis + (slice(start, end, step),)])


def _selection(call: Call) -> Operation:
    axis, index = _axis(call.arguments[1], call), call.arguments[2]
    return Monotone(lambda x: x.select(axis, index))


def _concatenation(call: Call) -> Operation:
    axis = (_argument(call, 1, 0)) % (len(call.shape) + 1)
    if axis == 0 or len(call.input_shapes) != len(call.arguments[0]):
        raise _refuse(call, "along the batch axis or with constants")
    return Concatenation(axis - 1)


def _mean(call: Call) -> Operation:
    axes = call.arguments[1] if len(call.arguments) > 1 and call.arguments[1] is not None else None
    if axes is None:
        raise _refuse(call, "over the batch axis")
    chosen = [_axis(axis, call) for axis in axes]
    keep = bool(_argument(call, 2, False))
    return Monotone(lambda x: x.mean(chosen, keepdim=keep))


def _adaptive_average(call: Call) -> Operation:
    size = _pair(call.arguments[1])
    return Monotone(lambda x: F.adaptive_avg_pool2d(x, size))


def _average_pool(call: Call) -> Operation:
    kernel = _pair(call.arguments[1])
    stride = _pair(_argument(call, 2, ()) or kernel)
    padding = _pair(_argument(call, 3, 0))
    ceil, count, divisor = _argument(call, 4, False), _argument(call, 5, True), _argument(call, 6, None)
    return Monotone(lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, count, divisor))


def _max_pool(call: Call) -> Operation:
    kernel = _pair(call.arguments[1])
    stride = _pair(_argument(call, 2, ()) or kernel)
    return MaxPool(
        kernel, stride, _pair(_argument(call, 3, 0)), _pair(_argument(call, 4, 1), 1), bool(_argument(call, 5, False))
    )


def _fixed(activation: activations.Activation) -> Translator:
    return lambda call: activation


def _gelu(call: Call) -> Operation:
    if "tanh" in call.arguments[1:]:
        raise _refuse(call, "in its tanh approximation; use the exact one")
    return activations.GELU


def _leaky_relu(call: Call) -> Operation:
    slope = float(_argument(call, 1, 0.01))
    if not 0 <= slope <= 1:
        raise _refuse(call, f"with the slope {slope} (0 to 1 are)")
    return activations.leaky_relu(slope)


def _elu(call: Call) -> Operation:
    alpha, scale, input_scale = (float(_argument(call, place, 1.0)) for place in (1, 2, 3))
    if not 0 < alpha <= 1 or scale != 1 or input_scale != 1:
        raise _refuse(call, "with alpha above 1 or scaled (SELU)")
    return activations.elu(alpha)


def _clamp(call: Call) -> Operation:
    low, high = _argument(call, 1, None), _argument(call, 2, None)
    defaults = (-1.0, 1.0) if call.target == "hardtanh" else (-torch.inf, torch.inf)
    if call.target == "relu6":
        low, high = 0.0, 6.0
    return activations.clamp(float(defaults[0] if low is None else low), float(defaults[1] if high is None else high))


def _softplus(call: Call) -> Operation:
    return activations.softplus(float(_argument(call, 1, 1.0)))


def supported_operations() -> Sequence[str]:
    """Names of the ATen operations that can be bounded."""
    return sorted(TRANSLATORS)


TRANSLATORS: dict[str, Translator] = {
    "conv2d": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "add": _sum(1.0),
    "sub": _sum(-1.0),
    "rsub": _reverse_subtraction,
    "mul": _multiplication,
    "div": _division,
    "neg": _negation,
    "view": _reshaping,
    "reshape": _reshaping,
    "_unsafe_view": _reshaping,
    "flatten": _reshaping,
    "unflatten": _reshaping,
    "squeeze": _reshaping,
    "unsqueeze": _reshaping,
    "permute": _permutation,
    "transpose": _transposition,
    "slice": _slice,
    "select": _selection,
    "cat": _concatenation,
    "mean": _mean,
    "adaptive_avg_pool2d": _adaptive_average,
    "avg_pool2d": _average_pool,
    "max_pool2d": _max_pool,
    "relu": _fixed(activations.RELU),
    "sigmoid": _fixed(activations.SIGMOID),
    "tanh": _fixed(activations.TANH),
    "silu": _fixed(activations.SILU),
    "exp": _fixed(activations.EXP),
    "hardsigmoid": _fixed(activations.HARDSIGMOID),
    "hardswish": _fixed(activations.HARDSWISH),
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "hardtanh": _clamp,
    "relu6": _clamp,
    "clamp": _clamp,
    "softplus": _softplus,
}
