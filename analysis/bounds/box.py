"""A box of inputs, whatever its sides and wherever it lies: what properties of other people's networks are about."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.bounds.ball import least_of_half
from certood.analysis.bounds.linear.windows import Windows
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

    def chosen(self, images: Tensor) -> "Box":
        """The boxes of some images, by their numbers."""
        return Box(self.lower[images], self.upper[images])

    def least(self, rows: Tensor | Windows) -> Tensor:
        """min of rows·(x − centre) over the box, (N, R) in float64, for rows (N, R, C, H, W); less what rounding may cost."""
        return least_of_half(rows, self._half)
