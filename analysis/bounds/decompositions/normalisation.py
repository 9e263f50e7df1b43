"""Normalisation layers: means, squares, reciprocal roots, and products."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from certood.analysis.bounds.decompositions.table import decomposes


def normalised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """(x − mean)/√(variance + ε) along axes."""
    return scaled_to_one(x - x.mean(dims, keepdim=True), dims, eps)


def scaled_to_one(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """x/√(mean x² + ε) along axes.

    No value exceeds √n for a mean over n: a cut-off that changes no value, and keeps bounds from growing without end.
    """
    limit = math.sqrt(math.prod(x.shape[dim] for dim in dims)) * (1 + 1e-9)
    found = x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    return found.clamp(-limit, limit)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """weight·x + bias, either of which may be missing."""
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def by_channel(weight: Tensor | None, rank: int) -> Tensor | None:
    """A vector along the channels of tensors with so many axes."""
    return None if weight is None else weight.view(1, -1, *[1] * (rank - 2))


@decomposes("layer_norm")
def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Along the last axes (Ba et al., arXiv 1607.06450)."""
    return affine(normalised(x, list(range(-len(normalized_shape), 0)), eps), weight, bias)


@decomposes("rms_norm")
def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x/√(mean x² + ε) along the last axes (Zhang and Sennrich, NeurIPS 2019, arXiv 1910.07467)."""
    dims = list(range(-len(normalized_shape), 0))
    added = torch.finfo(x.dtype).eps if eps is None else eps
    return affine(scaled_to_one(x, dims, added), weight, None)


@decomposes("group_norm")
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Along all places and the channels of a group (Wu and He, ECCV 2018, arXiv 1803.08494)."""
    groups = x.reshape(x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
    return affine(normalised(groups, [2], eps).reshape(x.shape), by_channel(weight, x.ndim), by_channel(bias, x.ndim))


@decomposes("instance_norm")
def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    """Along all places of a channel, or with stored statistics like batch normalisation."""
    weight, bias = by_channel(weight, x.ndim), by_channel(bias, x.ndim)
    if use_input_stats:
        return affine(normalised(x, list(range(2, x.ndim)), eps), weight, bias)
    mean, variance = by_channel(running_mean, x.ndim), by_channel(running_var, x.ndim)
    if mean is None or variance is None:
        return NotImplemented
    return affine((x - mean) * torch.rsqrt(variance + eps), weight, bias)
