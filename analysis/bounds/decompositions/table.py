"""The table of decompositions, and how functions enter it."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

DECOMPOSITIONS: dict[str, Callable[..., Any]] = {}


def decomposes(*names: str) -> Callable[[Function], Function]:
    """Register a function for all overloads of ATen operations, which it takes the arguments of.

    It is traced with a batch of unknown size, which `x.shape[0]` may be, and may return NotImplemented for arguments with
    which the operation stays as it is.
    """

    def register(function: Function) -> Function:
        DECOMPOSITIONS.update(dict.fromkeys(names, function))
        return function

    return register


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """The table that torch.export takes: every overload that computes a new tensor."""
    found: dict[Any, Callable[..., Any]] = {}
    for name, function in DECOMPOSITIONS.items():
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            operation = getattr(packet, overload)
            tensors = any("Tensor" in str(part.type) for part in operation._schema.arguments)
            if tensors and not any(part.is_out for part in operation._schema.arguments):
                found[operation] = function
    return found
