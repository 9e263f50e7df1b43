"""Reading an ONNX file and the weights beside it, trusting neither: where they lie, and how large they are."""

import os
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from certood.errors import CheckpointError
from certood.onnx.graph import tensors

# Types whose elements take whole bytes, the ones that are read.
WHOLE_TYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"),
)


def read_model(path: Path) -> Any:
    """The ModelProto of an ONNX file with all of its weights in it.

    Weights outside the file are read from regular files in its folder or below, at most as long as they are, and nowhere
    else. Raises CheckpointError where the file is missing or damaged, or its weights are elsewhere or of another size.
    """
    try:
        import onnx  # noqa: PLC0415 (optional)
        from google.protobuf.message import DecodeError  # noqa: PLC0415 (comes with onnx)
    except ImportError as error:
        raise CheckpointError("ONNX files need the extra: pip install 'certood[onnx]'") from error
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path.absolute()}")
    try:
        model = onnx.ModelProto()
        model.ParseFromString(path.read_bytes())
    except (DecodeError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable ONNX file ({error}); it may be truncated") from error
    external = onnx.TensorProto.EXTERNAL
    taken: Counter[Path] = Counter()
    for tensor in tensors(model.graph):
        if tensor.data_location == external:
            _attach(tensor, path, taken)
        _check_size(tensor, len(tensor.raw_data))
    return model


def _expected_size(tensor: Any) -> int | None:
    """How many bytes the raw data of a TensorProto should have; None for types other than `WHOLE_TYPES`."""
    from onnx import TensorProto, helper  # noqa: PLC0415 (optional)

    if tensor.data_type not in TensorProto.DataType.values():
        return None
    if TensorProto.DataType.Name(tensor.data_type) not in WHOLE_TYPES:
        return None
    elements = 1
    for size in tensor.dims:
        elements *= size
    return elements * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _check_size(tensor: Any, found: int) -> None:
    if not tensor.HasField("raw_data"):
        return
    expected = _expected_size(tensor)
    if expected is not None and found != expected:
        raise CheckpointError(
            f"the ONNX tensor {tensor.name!r} of shape {list(tensor.dims)} needs {expected} bytes, but has {found}"
        )


def _attach(tensor: Any, model: Path, taken: Counter[Path]) -> None:
    """Read the data of a tensor that lies in a file beside the model into the tensor."""
    from onnx import TensorProto  # noqa: PLC0415 (optional)

    about = {entry.key: entry.value for entry in tensor.external_data}
    path = _beside(model, tensor.name, about.get("location", ""))
    available = path.stat().st_size
    expected = _expected_size(tensor)
    try:
        offset = int(about.get("offset", 0))
        length = int(about.get("length", available - offset))
    except ValueError as error:
        raise CheckpointError(
            f"{model}: the place of tensor {tensor.name!r} in {path.name} is damaged ({error})"
        ) from error
    if expected is None or expected != length or offset < 0 or length < 0 or offset + length > available:
        raise CheckpointError(
            f"{model}: tensor {tensor.name!r} of shape {list(tensor.dims)} needs {expected} bytes; {path.name} is to give "
            f"{length} from {offset} on, and has {available}"
        )
    taken[path] += length
    if taken[path] > available:
        raise CheckpointError(f"{model}: its tensors take more bytes of {path.name} than the {available} that it has")
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}, which holds weights of {model}: {error}") from error
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _beside(model: Path, name: str, location: str) -> Path:
    """The file at a location relative to the folder of a model; raises CheckpointError where it is not a file in there."""
    parts = PurePosixPath(location).parts
    windows = PureWindowsPath(location)
    problem = ""
    if not parts:
        problem = "is not named"
    elif PurePosixPath(location).is_absolute() or windows.drive or windows.root:
        problem = "is an absolute path"
    elif ".." in parts or ".." in windows.parts:
        problem = "lies above the folder of the model"
    else:
        path = model.parent
        for part in parts:
            path /= part
            if path.is_symlink():
                problem = "is or lies behind a link"
        if not problem and not path.is_file():
            problem = "does not exist or is not a file"
    if problem:
        raise CheckpointError(
            f"{model}: the file {location!r} of tensor {name!r} {problem}; weights are read only from files beside the model"
        )
    return path
