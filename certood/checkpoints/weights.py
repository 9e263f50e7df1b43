"""Weights as files hold them: safetensors, and state dicts in PyTorch's format; and how they enter a network."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from certood.errors import CheckpointError
from certood.models.foreign_weights import renamed


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata; raises CheckpointError where it does not read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); it may be truncated") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict that `torch.load(weights_only=True)` accepts.

    Raises CheckpointError where the file is missing, needs code execution to be read, or is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path.absolute()}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be read without running code that it carries, which certood refuses; save the state dict "
            "alone: torch.save(model.state_dict(), path)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a readable PyTorch file ({error}); it may be truncated") from error
    for key in ("state_dict", "model", "net"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict (names to tensors), but {type(loaded).__name__}")
    return {str(name): value for name, value in loaded.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give a network the weights that were read from a file; raises CheckpointError where they do not fit or are not finite."""
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: weights are infinite or not a number: {', '.join(broken[:5])}")
    own = model.state_dict()
    weights = renamed(weights, model)
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems = [
        f"{kind}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}; {'; '.join(problems)}")
    model.load_state_dict(weights)
