"""A network in float64 that computes what the network itself does, but for rounding."""

import copy
import itertools

import torch
from torch import nn


def float64_copy(model: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """A copy of a module in float64 and eval mode, without gradients of its parameters; by default where the module is.

    ε of an RMSNorm that says none stays that of the network's own precision.
    """
    found = copy.deepcopy(model)
    for part in found.modules():
        if isinstance(part, nn.RMSNorm) and part.eps is None:
            part.eps = implicit_eps(own_precision(model))
    return found.to(device, torch.float64).eval().requires_grad_(False)


def own_precision(model: nn.Module) -> torch.dtype:
    """The precision of a network's parameters and buffers, float32 where it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def implicit_eps(precision: torch.dtype) -> float:
    """The ε that PyTorch's rms_norm adds where none is said: of the precision that it computes in, float32 for half precision."""
    return torch.finfo(torch.float64 if precision == torch.float64 else torch.float32).eps
