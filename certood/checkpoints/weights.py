"""Weights as files hold them: safetensors, and state dicts in PyTorch's format; and how they enter a network."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from certood.errors import CheckpointError
from certood.models.foreign_weights import renamed

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shapes of the tensors of a safetensors file and its metadata, without reading a tensor.

    Raises CheckpointError where it does not read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, file.metadata() or {}
    except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise _unreadable(path, error) from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata; raises CheckpointError where it does not read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError, AttributeError, TypeError) as error:
        raise _unreadable(path, error) from error


def require_file(path: Path) -> None:
    """Raise CheckpointError where there is no such file."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path.absolute()}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict that `torch.load(weights_only=True)` accepts.

    Raises CheckpointError where the file is missing, needs code execution to be read, is damaged, or would take more memory
    than it has bytes.
    """
    require_file(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols; what cannot be read raises
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise CheckpointError(f"{path} is not a readable PyTorch file; it may be of another kind") from error
        raise CheckpointError(
            f"{path} cannot be read without running code that it carries, which certood refuses; save the state dict "
            "alone: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # what a damaged pickle raises is anything
        raise CheckpointError(
            f"{path} is not a readable PyTorch file ({_short(error)}); it may be truncated"
        ) from error
    for key in ("state_dict", "model", "net"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict (names to tensors), but {type(loaded).__name__}")
    return {str(name): value for name, value in loaded.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give a network the weights that were read from a file.

    Raises CheckpointError where they do not fit, are no ordinary dense floating-point tensors (or whole numbers where the network
    counts), or are not finite.
    """
    _refuse_storage(weights, path)
    own = model.state_dict()
    weights = renamed(weights, model)
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    types = [
        f"{name} {weights[name].dtype} instead of {own[name].dtype}"
        for name in own
        if name in weights
        and weights[name].dtype != own[name].dtype
        and not (own[name].dtype in FLOATS and weights[name].dtype in FLOATS)
    ]
    problems = [
        f"{kind}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", wrong),
            ("of another type", types),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}; {'; '.join(problems)}")
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: weights are infinite or not a number: {', '.join(broken[:5])}")
    model.load_state_dict(weights)


def _refuse_storage(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what is no plain dense tensor of the memory that its file gave it."""
    for name, value in weights.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain:
            raise CheckpointError(
                f"{path}: {name} is not a dense tensor ({value.layout}, {value.device.type}"
                f"{', quantised' if value.is_quantized else ''}); save the weights as ordinary tensors"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} has {value.numel():,} values, but memory of fewer is stored")


def _refuse_compressed(path: Path) -> None:
    """PyTorch's files are archives of stored parts; a compressed part may unfold to any size."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as error:  # what a damaged archive raises is anything
        raise CheckpointError(f"{path} is not a readable PyTorch file ({error}); it may be truncated") from error
    size = path.stat().st_size
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise CheckpointError(f"{path} holds compressed parts, which PyTorch never writes; save the weights again")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        start = b""
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".onnx") or start[:2] == b"PK" or start[:1] == b"\x80":
        return CheckpointError(
            f"{path} is no safetensors file; for weights in PyTorch's format say what they are with --architecture, "
            "--classes and --input-shape"
        )
    return CheckpointError(f"{path} is not a readable safetensors file ({_short(error)}); it may be truncated")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
