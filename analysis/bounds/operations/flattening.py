"""Values and rows as matrices, also where there is one number per image."""

from torch import Tensor


def flat(values: Tensor) -> Tensor:
    """Values (N, …) as (N, D)."""
    return values.reshape(len(values), -1)


def flat_rows(rows: Tensor) -> Tensor:
    """Rows (N, R, …) as (N, R, D)."""
    return rows.reshape(*rows.shape[:2], -1)


def totals(values: Tensor) -> Tensor:
    """Sums (N, R) of rows (N, R, …)."""
    return flat_rows(values).sum(2)
