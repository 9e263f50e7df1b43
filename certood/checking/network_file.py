"""The network in an ONNX file."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from certood.checking import operators as _operators  # noqa: F401 (registers what can be read)
from certood.checking.network import Network
from certood.checking.reading import Constant, Node, Reading, Unchecked, require_small
from certood.errors import CertoodError, CheckpointError


def read_network(path: Path) -> Network:
    """The network in an ONNX file with one image as input and all weights in it.

    Raises CertoodError where the package onnx is missing, CheckpointError where the file cannot be read, Unchecked
    for an operator or form that is not known here.
    """
    try:
        import onnx  # noqa: PLC0415 (optional)
        from onnx import numpy_helper  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise CertoodError("ONNX files need the extra: pip install 'certood[onnx]'") from error
    try:
        graph = onnx.load(path).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except Exception as error:  # the parser's errors have no common base
        raise CheckpointError(f"{path} is not a readable ONNX file ({error})") from error
    try:
        return _read(graph, constants)
    except MemoryError as error:
        raise Unchecked(f"{path} is too large for this checker ({error})") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        raise Unchecked(f"{path} is put together in a way that the checker does not know ({error!r})") from error


def _read(graph: Any, constants: dict[str, Constant]) -> Network:
    from onnx import helper  # noqa: PLC0415 (optional)

    entries = [given for given in graph.input if given.name not in constants]
    if len(entries) != 1 or len(graph.output) != 1:
        raise Unchecked(f"expected one input and one output, found {len(entries)} and {len(graph.output)}")
    entry = entries[0]
    shape = tuple(axis.dim_value for axis in entry.type.tensor_type.shape.dim)
    if len(shape) != 4 or shape[0] != 1:
        raise Unchecked(f"expected one image (1, C, H, W) as input, found {shape}")
    require_small(*shape)
    kind = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
    if kind not in (np.float32, np.float64):
        raise Unchecked(f"expected images of float32 or float64, found {kind}")
    reading = Reading(constants, entry.name, shape, kind)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise Unchecked(f"the checker knows ONNX's own operators, and not {node.op_type} of {node.domain!r}")
        outputs = [name for name in node.output if name]
        if len(outputs) != 1:
            raise Unchecked(f"expected one output of {node.op_type}, found {len(outputs)}")
        attributes = {given.name: helper.get_attribute_value(given) for given in node.attribute}
        if len(attributes) != len(node.attribute):
            raise Unchecked(f"an attribute of {node.op_type} is given twice")
        reading.add(Node(node.op_type, tuple(node.input), attributes, outputs[0]))
    place, last = reading.known[graph.output[0].name]
    if place != len(reading.network.steps):
        raise Unchecked("expected the last step to give the output")
    reading.network.outputs = math.prod(last)
    return reading.network
