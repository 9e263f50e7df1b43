"""Functions of PyTorch that are replaced, while a network computes, by ones whose double backward is fast."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from certood.train.double_backward.batch_norm import normalise
from certood.train.double_backward.concatenation import concatenate
from certood.train.double_backward.convolution import convolve

# Each gives None for arguments that it leaves to PyTorch.
REPLACED: dict[Any, Callable[..., Any]] = {
    F.conv1d: partial(convolve, 1),
    F.conv2d: partial(convolve, 2),
    F.conv3d: partial(convolve, 3),
    F.batch_norm: normalise,
    torch.cat: concatenate,
    torch.concat: concatenate,
    torch.concatenate: concatenate,
}


class ClosedForms(TorchFunctionMode):
    """While entered, these functions, of tensors that require a gradient, are differentiated twice by formulas of their own.

    Values and first gradients are PyTorch's. A third derivative of batch normalisation is an error.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = REPLACED.get(func)
        if replacement is not None:
            found = replacement(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)
