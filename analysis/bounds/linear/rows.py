"""Arithmetic of rows of coefficients, whole planes or windows of them."""

from __future__ import annotations

import torch
from torch import Tensor

from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.base import Rows
from certood.analysis.bounds.operations.flattening import flat_rows, totals

# Rows of an image with so many numbers are contracted by a product of their own.
ALONE = 2**15


def summed(first: Rows, second: Rows) -> Rows:
    """The sum of two sets of rows of the same node."""
    if isinstance(first, Windows):
        return first.add(second)
    return second.add(first) if isinstance(second, Windows) else first + second


def signed(rows: Rows) -> Rows:
    """Rows followed by their negatives: (N, 2R, …)."""
    if not isinstance(rows, Windows):
        return torch.cat([rows, -rows], 1)
    return rows.repeated(torch.cat([rows.values, -rows.values], 1), 2)


def dense(rows: Rows) -> Tensor:
    """Rows as whole planes (N, R, *shape)."""
    return rows.dense() if isinstance(rows, Windows) else rows


def magnitude(rows: Rows, plane: Tensor) -> Tensor:
    """Σ |row|·plane (N, R), for a plane (N, *shape), or one a row, of no negative value."""
    values = rows.values if isinstance(rows, Windows) else rows
    plane = plane.to(values.dtype)
    if isinstance(rows, Windows) and not rows.covers:
        return totals(rows.gather(rows.padded(plane)).mul_(values.abs()))
    plane = broadcastable(rows, plane)
    if len(values) == 1 or plane.shape[1] > 1 or values[0].numel() < ALONE:
        return row_sums(values.abs(), plane)
    # Image by image, so that what is made of one stays in the caches.
    parts = zip(values.split(1), plane.split(1), strict=True)
    return torch.cat([row_sums(own.abs(), one) for own, one in parts])


def contracted(rows: Rows, plane: Tensor) -> Tensor:
    """Σ row·plane (N, R), for a plane (N, *shape), or one a row."""
    values = rows.values if isinstance(rows, Windows) else rows
    plane = plane.to(values.dtype)
    if isinstance(rows, Windows) and not rows.covers:
        return totals(rows.gather(rows.padded(plane)).mul_(values))
    return row_sums(values, broadcastable(rows, plane))


def broadcastable(rows: Rows, plane: Tensor) -> Tensor:
    """A plane (N, *shape), or (N, R, *shape), as it broadcasts against rows of whole planes: (N, 1 or R, …)."""
    if isinstance(rows, Windows):
        return rows.channels_last(plane)
    return plane if plane.ndim == rows.ndim else plane[:, None]


def gathered(rows: Rows, plane: Tensor) -> Tensor:
    """A plane (N, *shape) as it broadcasts against the values of any rows: under every window, zero beyond the border."""
    if isinstance(rows, Windows) and not rows.covers:
        return rows.gather(rows.padded(plane))
    return broadcastable(rows, plane)


def row_sums(values: Tensor, plane: Tensor) -> Tensor:
    """Σ values·plane (N, R), for a plane (N, 1 or R, …)."""
    if plane.shape[1] == 1 and len(values) == 1:
        return flat_rows(values) @ plane.flatten()
    if plane.shape[1] == 1 and values[0].numel() >= ALONE:
        return torch.stack([own.flatten(1) @ one.flatten() for own, one in zip(values, plane, strict=True)])
    return totals(values * plane)
