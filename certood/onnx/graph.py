"""An ONNX model as plain values: nodes, constants, and what goes in and out; functions inlined, one floating-point type."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certood.errors import CheckpointError
from certood.onnx.calls import OPERATORS, Node

STANDARD_DOMAINS = ("", "ai.onnx")
OLDEST_OPERATOR_SET = 7
HALF_TYPES = ("FLOAT16", "BFLOAT16")
FLOAT_TYPES = ("FLOAT", "DOUBLE")


@dataclass(frozen=True)
class Graph:
    """An ONNX graph in order of evaluation.

    `constants` are all values that the file gives, by name; those of `weights` are its initialisers. `input_shape` has an
    int or, for an axis of any size, a text or None at each axis.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    weights: frozenset[str]
    input_name: str
    input_shape: tuple[int | str | None, ...]
    output_name: str


def standardised(model: Any) -> Any:
    """The model (a ModelProto) with its functions inlined, in the floating-point type of its input.

    Functions are those of the model and those standard operators that are unknown here and that ONNX defines by others.
    Numbers of the other type and of half precision become that type; half precision may only enter a cast.
    Raises CheckpointError for other domains, unknown or too old operator sets, and an input that is not of floating point.
    """
    from onnx import TensorProto, inliner  # noqa: PLC0415 (optional)

    operator_set(model)
    if model.functions:
        model = inliner.inline_local_functions(model)
    damaged = [node.op_type for node in _nodes(model.graph) if not isinstance(node.op_type, str)]
    if damaged:  # protobuf gives the bytes where a name is not UTF-8
        raise CheckpointError(f"the ONNX graph has an operation called {damaged[0]!r}; the file is damaged")
    unknown = {node.op_type for node in _nodes(model.graph) if node.domain in STANDARD_DOMAINS} - OPERATORS.keys()
    composed = [("", name) for name in sorted(unknown - {"Constant"})]
    if composed and hasattr(inliner, "inline_selected_functions"):
        model = inliner.inline_selected_functions(model, composed, inline_schema_functions=True)
    _check_half(model)
    kind = TensorProto.DataType.Name(_input(model).type.tensor_type.elem_type)
    if kind not in FLOAT_TYPES:
        raise CheckpointError(f"the ONNX network takes {kind} images; expected FLOAT or DOUBLE")
    for other in {*FLOAT_TYPES, *HALF_TYPES} - {kind}:
        convert_floats(model, other, kind)
    return model


def operator_set(model: Any) -> int:
    """The version of the standard operators that a model uses; raises CheckpointError where it has none or too old ones."""
    found = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    if not found or not model.graph.node:
        raise CheckpointError(
            "the file holds no ONNX graph of standard operators; it may be truncated or of another kind"
        )
    if max(found) < OLDEST_OPERATOR_SET:
        raise CheckpointError(
            f"the ONNX operator set {max(found)} is too old: expected {OLDEST_OPERATOR_SET} or newer; convert the file with "
            "onnx.version_converter.convert_version"
        )
    return int(max(found))


def read_graph(model: Any) -> Graph:
    """A standardised model as plain values; raises CheckpointError that names the node or tensor at fault."""
    version = operator_set(model)
    if model.graph.sparse_initializer:
        raise CheckpointError("sparse initialisers of ONNX are not supported; store them densely")
    constants = {tensor.name: read_tensor(tensor) for tensor in model.graph.initializer}
    weights = frozenset(constants)
    nodes = []
    for place, proto in enumerate(model.graph.node):
        node = _node(proto, version, place)
        if proto.domain not in STANDARD_DOMAINS:
            raise node.error(
                f"domain {proto.domain!r} is not one of ONNX's own, and the file does not define its operators"
            )
        if node.operator == "Constant":
            constants[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    outputs = [value.name for value in model.graph.output]
    if len(outputs) != 1:
        raise CheckpointError(
            f"the ONNX network returns {len(outputs)} values ({', '.join(outputs)}), expected the logits alone; cut it with "
            "onnx.utils.extract_model"
        )
    entry = _input(model)
    dims = entry.type.tensor_type.shape.dim
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or None for dim in dims
    )
    return Graph(tuple(nodes), constants, weights, entry.name, shape, outputs[0])


def _input(model: Any) -> Any:
    """The one input that is not an initialiser (old files list those as inputs too)."""
    given = {tensor.name for tensor in model.graph.initializer}
    found = [value for value in model.graph.input if value.name not in given]
    if len(found) != 1 or not found[0].type.HasField("tensor_type"):
        raise CheckpointError(
            f"the ONNX network takes {len(found)} inputs ({', '.join(value.name for value in found)}), expected images alone"
        )
    return found[0]


def _node(proto: Any, version: int, place: int) -> Node:
    attributes = {attribute.name: _attribute(proto, attribute) for attribute in proto.attribute}
    name = proto.name or f"#{place}"
    return Node(proto.op_type, name, version, tuple(proto.input), tuple(proto.output), attributes)


def _attribute(proto: Any, attribute: Any) -> Any:
    from onnx import AttributeProto, helper  # noqa: PLC0415 (optional)

    if attribute.type == AttributeProto.TENSOR:
        tensor = read_tensor(attribute.t)
        return (
            tensor
            if proto.op_type == "Constant"
            else tensor.flatten().tolist()
            if tensor.numel() > 1
            else tensor.item()
        )
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        raise CheckpointError(
            f"ONNX node {proto.name!r} ({proto.op_type}) chooses between graphs or repeats one, which is not supported; export "
            "the network without control flow"
        )
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (int, float)):
        return value
    return [part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in value]


def _constant(node: Node) -> Tensor:
    """The value of a Constant; raises CheckpointError for a text or a sparse one."""
    (name, value), *others = node.attributes.items()
    if others or name not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise node.error(f"a constant given by {', '.join(node.attributes)} is not supported")
    if name == "value":
        return value  # type: ignore[no-any-return]
    return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)


def read_tensor(proto: Any) -> Tensor:
    """A TensorProto as a tensor, half precision as float32; raises CheckpointError where it is damaged or of another kind."""
    from onnx import TensorProto, numpy_helper  # noqa: PLC0415 (optional)

    kind = TensorProto.DataType.Name(proto.data_type) if proto.data_type in TensorProto.DataType.values() else "unknown"
    if kind == "STRING" or any(size < 0 for size in proto.dims):
        raise CheckpointError(
            f"the ONNX tensor {proto.name!r} of type {kind} and shape {list(proto.dims)} is no array of numbers"
        )
    try:
        array = np.asarray(numpy_helper.to_array(proto))
        if kind in HALF_TYPES:
            array = array.astype(np.float32)
        return torch.from_numpy(np.array(array, order="C"))
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"the ONNX tensor {proto.name!r} of type {kind} and shape {list(proto.dims)} is damaged or not supported ({error})"
        ) from error


def tensors(graph: Any) -> Iterator[Any]:
    """Every TensorProto that a GraphProto holds: initialisers and attributes of nodes."""
    yield from graph.initializer
    for node in _nodes(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes of a GraphProto, also of the graphs within."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _check_half(model: Any) -> None:
    """Raise CheckpointError where a number of half precision is computed with: the network would be another one."""
    from onnx import TensorProto  # noqa: PLC0415 (optional)

    half = [TensorProto.DataType.Value(name) for name in HALF_TYPES]
    names = {tensor.name for tensor in model.graph.initializer if tensor.data_type in half}
    for node in _nodes(model.graph):
        if node.op_type == "Constant" and any(part.t.data_type in half for part in node.attribute):
            names.update(node.output)
        elif node.op_type != "Cast" and names & set(node.input):
            raise CheckpointError(
                f"ONNX node {node.name!r} ({node.op_type}) computes in half precision, which rounds every value; export the "
                "network in float32"
            )


def convert_floats(model: Any, old: str, new: str) -> None:
    """Turn every number, cast and declaration of one floating-point type in a ModelProto into another, in place.

    Casts to half precision stay: they round.
    """
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 (optional)

    before, after = (TensorProto.DataType.Value(name) for name in (old, new))
    kind = helper.tensor_dtype_to_np_dtype(after)

    def convert(tensor: Any) -> None:
        if tensor.data_type == before:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))

    try:
        for tensor in tensors(model.graph):
            convert(tensor)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the ONNX file holds a damaged tensor ({error})") from error
    for node in _nodes(model.graph):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "stash_type") and attribute.i == before and old not in HALF_TYPES:
                attribute.i = after
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats") and old == "FLOAT":
                value = np.array(attribute.f if attribute.name == "value_float" else list(attribute.floats), kind)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
        plain = node.op_type == "ConstantOfShape" and not any(part.name == "value" for part in node.attribute)
        if plain and old == "FLOAT":
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, kind))))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == before:
            value.type.tensor_type.elem_type = after
