"""A box of inputs, whatever its sides and wherever it lies: what properties of other people's networks are about."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.linear.rows import magnitude
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.precision import least_normal, unit_roundoff
from certood.errors import CertoodError


class Box:
    """{x : lower ≤ x ≤ upper} for every image of a batch, both (N, C, H, W), in units of the network's input.

    Unlike an `LpBall` it need not lie in [0, 1], and its sides may differ. Raises CertoodError for ends that are not finite, or
    of which a lower one exceeds the upper.
    """

    norm = math.inf
    is_box = True

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        if lower.shape != upper.shape or lower.ndim != 4 or not len(lower):
            raise CertoodError(
                f"expected ends of shape (N, C, H, W), got {tuple(lower.shape)} and {tuple(upper.shape)}"
            )
        if not (lower.isfinite() & upper.isfinite() & (lower <= upper)).all():
            raise CertoodError("expected finite ends with lower <= upper")
        self.lower, self.upper = lower.detach().to(torch.float64), upper.detach().to(torch.float64)
        self.centre = (self.lower / 2 + self.upper / 2).clamp(self.lower, self.upper)
        reach = torch.maximum(self.upper - self.centre, self.centre - self.lower)
        # Rounded up, unless nothing moves.
        self._half = torch.where(reach > 0, torch.nextafter(reach, reach.new_tensor(math.inf)), reach)

    def __len__(self) -> int:
        return len(self.centre)

    def split(self, count: int) -> Sequence["Box"]:
        """The boxes in parts of at most so many."""
        return [Box(*ends) for ends in zip(self.lower.split(count), self.upper.split(count), strict=True)]

    def least(self, rows: Tensor | Windows) -> Tensor:
        """min of rows·(x − centre) over the box, (N, R) in float64, for rows (N, R, C, H, W); less what rounding may cost."""
        values = rows.values if isinstance(rows, Windows) else rows
        count = values[0, 0].numel() + 8
        half = self._half
        if values.dtype != torch.float64:
            half = torch.where(half > 0, half.clamp_min(least_normal(values.dtype)), half)
        reach = magnitude(rows, half).to(torch.float64) * (1 + 1.01 * unit_roundoff(values.dtype) * count)
        return -reach - count * least_normal(values.dtype)
