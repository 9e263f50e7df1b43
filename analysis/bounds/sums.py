"""Sums of many float32 products whose error is known and small: blocks in float32, their totals in float64."""

import torch
from torch import Tensor

# The unit roundoff of float32.
UNIT = 2.0**-24
# At most so many numbers are added in float32, in whatever order; γ of that many bounds the relative error.
BLOCK = 128


def blocked_sum(products: Tensor) -> Tensor:
    """The sum over the last axis, in float64; no float32 sum has more than BLOCK terms."""
    if products.dtype == torch.float64:
        return products.sum(-1)
    size = products.shape[-1]
    block = next((count for count in range(min(BLOCK, size), 15, -1) if size % count == 0), 0)
    if not block:
        return products.sum(-1, dtype=torch.float64)
    parts: Tensor = products.unflatten(-1, (-1, block)).sum(-1)
    return parts.sum(-1, dtype=torch.float64)
