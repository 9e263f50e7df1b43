"""Balls of images, and the least change of a linear function over them."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from certood.analysis.bounds.linear.rows import contracted, magnitude
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.precision import least_normal, unit_roundoff
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

    def chosen(self, images: Tensor) -> "Region":
        """The sets of some images, by their numbers, in any order and any number of times."""
        ...


def least_of_half(rows: Tensor | Windows, half: Tensor, *, products: int = 1) -> Tensor:
    """min of rows·y over |y| ≤ half, (N, R) in float64, for rows (N, R, *shape) and half the sides of a box (N, *shape).

    The rounding of this product, or of two of its size, is subtracted, and what underflows in them.
    """
    values = rows.values if isinstance(rows, Windows) else rows
    count = values[0, 0].numel() + 8
    share = products * 1.01 * unit_roundoff(values.dtype) * count
    if values.dtype != torch.float64:
        half = torch.where(half > 0, half.clamp_min(least_normal(values.dtype)), half)
    reach = magnitude(rows, half).to(torch.float64) * (1 + share)
    return -reach - count * least_normal(values.dtype)


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
        radii = torch.as_tensor(eps, dtype=torch.float64, device=centre.device)
        if radii.shape not in ((), (1,), (len(centre),)):
            raise CertoodError(f"expected one eps or {len(centre)}, one an image, got shape {tuple(radii.shape)}")
        self.eps = radii.expand(len(centre)).clone()
        self.norm = float(norm)
        limit = 1.0 if norm == math.inf else math.inf
        if not ((self.eps >= 0) & (self.eps <= limit)).all():
            raise CertoodError(
                f"expected 0 <= eps <= {limit:g} in pixels, got {self.eps.min():.4g} to {self.eps.max():.4g}"
            )
        radius = self.eps.view(-1, 1, 1, 1)
        # Rounded outwards, unless nothing moves.
        below = torch.nextafter(self.centre - radius, self.centre.new_tensor(-math.inf))
        above = torch.nextafter(self.centre + radius, self.centre.new_tensor(math.inf))
        self.lower = torch.where(radius > 0, below, self.centre).clamp_min(0)
        self.upper = torch.where(radius > 0, above, self.centre).clamp_max(1)

    def __len__(self) -> int:
        return len(self.centre)

    def split(self, count: int) -> list["LpBall"]:
        """The balls in parts of at most so many."""
        if count >= len(self):
            return [self]
        parts = zip(self.centre.split(count), self.eps.split(count), strict=True)
        return [LpBall(centre, eps, self.norm) for centre, eps in parts]

    def chosen(self, images: Tensor) -> "LpBall":
        """The balls of some images, by their numbers."""
        return LpBall(self.centre[images], self.eps[images], self.norm)

    @property
    def is_box(self) -> bool:
        """Whether the ball is a box."""
        return self.norm == math.inf

    def least(self, rows: Tensor | Windows) -> Tensor:
        """min of rows·(x − centre) over the ball, (N, R) in float64, for rows (N, R, C, H, W).

        The better of the dual norm over the unclipped ball, −ε‖A‖_q, and the minimum over the clipped box, which contains the
        ball for every norm; both are sound. What rounding may cost is subtracted.
        """
        half, shift = self._offsets
        box = least_of_half(rows, half, products=1 if shift is None else 2)
        if shift is not None:
            box = box + contracted(rows, shift)
        if self.norm == math.inf:
            return box
        flat = (rows.cleaned().values if isinstance(rows, Windows) else rows).to(torch.float64).flatten(2)
        # Squares underflow where their roots do not.
        dual = flat.norm(dim=2) + 1e-150 if self.norm == 2 else flat.abs().amax(2)
        return torch.maximum(
            box, -self.eps[:, None] * dual * (1 + 2 * unit_roundoff(torch.float64) * (flat.shape[2] + 8))
        )

    @cached_property
    def _offsets(self) -> tuple[Tensor, Tensor | None]:
        """Half the range of x − centre, and its middle where the pixel range cuts it off on one side.

        Both from differences to the centre and not from the ends of the box, which lose the digits of a small ball.
        """
        radius = self.eps.view(-1, 1, 1, 1)
        below, above = torch.minimum(self.centre, radius), torch.minimum(1 - self.centre, radius)
        if not bool(((self.centre < radius) | (1 - self.centre < radius)).any()):
            return torch.maximum(below, above), None
        return (below + above) / 2, (above - below) / 2
