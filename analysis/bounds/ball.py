"""Balls of images, and the least change of a linear function over them."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from certood.analysis.bounds.linear.rounding import UNIT
from certood.analysis.bounds.linear.rows import contracted, magnitude
from certood.analysis.bounds.linear.windows import Windows
from certood.errors import CertoodError


@dataclass(frozen=True)
class Bounds:
    """Sound bounds: every value lies between `lower` and `upper`, elementwise. `method` names what computed them."""

    lower: Tensor
    upper: Tensor
    method: str = ""

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise CertoodError(
                f"bounds of one shape expected, got {tuple(self.lower.shape)}, {tuple(self.upper.shape)}"
            )

    def intersect(self, other: "Bounds") -> "Bounds":
        """The tighter of the two, elementwise: both are sound, so their intersection is."""
        return Bounds(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper), self.method)

    @property
    def width(self) -> Tensor:
        """upper − lower."""
        return self.upper - self.lower


def or_infinite(values: Tensor, sign: int) -> Tensor:
    """Not a number means nothing is known: infinity on the side of this sign."""
    return torch.nan_to_num(values, nan=sign * math.inf, posinf=math.inf, neginf=-math.inf)


class Region(Protocol):
    """A convex set of inputs for every image of a batch: within a box, and with a least value of linear functions."""

    @property
    def centre(self) -> Tensor:
        """A point of the set, (N, *shape)."""
        ...

    @property
    def lower(self) -> Tensor:
        """The lower ends of the box, (N, *shape)."""
        ...

    @property
    def upper(self) -> Tensor:
        """The upper ends of the box, (N, *shape)."""
        ...

    @property
    def is_box(self) -> bool:
        """Whether the set is the whole box, so that intervals of linear functions are exact."""
        ...

    def __len__(self) -> int: ...

    def least(self, rows: Tensor | Windows) -> Tensor:
        """A lower bound (N, R) of rows·(x − centre), rows (N, R, *shape), for x in the set."""
        ...


class LpBall:
    """B_p(x, ε) ∩ [0,1]^d around every image of a batch.

    `centre` is (N, C, H, W) in [0, 1]; `eps` a number or (N,), in pixels; `norm` is inf, 2 or 1. Raises CertoodError for
    images out of range or not finite, radii below 0 or above 1 (l_inf; the norms 2 and 1 take any radius), other norms.
    """

    def __init__(self, centre: Tensor, eps: float | Tensor, norm: float = math.inf) -> None:
        if norm not in (math.inf, 2, 1):
            raise CertoodError(f"expected norm inf, 2 or 1, got {norm}")
        if centre.ndim != 4 or not len(centre):
            raise CertoodError(f"expected images of shape (N, C, H, W), got {tuple(centre.shape)}")
        if not centre.isfinite().all():
            raise CertoodError("an image holds values that are not finite")
        if centre.min() < 0 or centre.max() > 1:
            hint = "; divide 0–255 images by 255" if centre.max() > 2 else ""
            raise CertoodError(
                f"expected images in [0, 1], found {centre.min().item():.4g} to {centre.max().item():.4g}{hint}"
            )
        self.centre = centre.detach().to(torch.float64)
        self.eps = torch.as_tensor(eps, dtype=torch.float64, device=centre.device).expand(len(centre)).clone()
        self.norm = float(norm)
        limit = 1.0 if norm == math.inf else math.inf
        if not ((self.eps >= 0) & (self.eps <= limit)).all():
            raise CertoodError(
                f"expected 0 <= eps <= {limit:g} in pixels, got {self.eps.min():.4g} to {self.eps.max():.4g}"
            )
        radius = self.eps.view(-1, 1, 1, 1)
        self.lower = (self.centre - radius).clamp_min(0)
        self.upper = (self.centre + radius).clamp_max(1)

    def __len__(self) -> int:
        return len(self.centre)

    def split(self, count: int) -> list["LpBall"]:
        """The balls in parts of at most so many."""
        if count >= len(self):
            return [self]
        parts = zip(self.centre.split(count), self.eps.split(count), strict=True)
        return [LpBall(centre, eps, self.norm) for centre, eps in parts]

    @property
    def is_box(self) -> bool:
        """Whether the ball is a box."""
        return self.norm == math.inf

    def least(self, rows: Tensor | Windows) -> Tensor:
        """min of rows·(x − centre) over the ball, (N, R) in float64, for rows (N, R, C, H, W).

        The better of the dual norm over the unclipped ball, −ε‖A‖_q, and the minimum over the clipped box, which contains the
        ball for every norm; both are sound. For rows in float32 what rounding may cost is subtracted.
        """
        values = rows.values if isinstance(rows, Windows) else rows
        reach = magnitude(rows, (self.upper - self.lower) / 2).to(torch.float64)
        if values.dtype == torch.float32:
            # Of both products together: the centre lies in the box.
            reach = reach * (1 + 2 * UNIT * (values[0, 0].numel() + 8))
        box = -reach
        if self._shifted:
            box = box + contracted(rows, self._shift)
        if self.norm == math.inf:
            return box
        flat = (rows.cleaned().values if isinstance(rows, Windows) else rows).to(torch.float64).flatten(2)
        dual = flat.norm(dim=2) if self.norm == 2 else flat.abs().amax(2)
        return torch.maximum(box, -self.eps[:, None] * dual)

    @cached_property
    def _shift(self) -> Tensor:
        """How far the middle of the box, which may be clipped, lies from the centre."""
        return (self.upper + self.lower) / 2 - self.centre

    @cached_property
    def _shifted(self) -> bool:
        """Whether it does, by more than rounding."""
        return bool(self._shift.abs().max() > 1e-15)
