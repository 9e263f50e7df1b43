"""For which tensors a function of PyTorch is replaced."""

import torch
from torch import Tensor, nn


def replaceable(*tensors: Tensor) -> bool:
    """Whether the first is differentiated, and all are real numbers in plain tensors."""
    return (
        torch.is_grad_enabled()
        and tensors[0].requires_grad
        and all(type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point() for tensor in tensors)
    )
