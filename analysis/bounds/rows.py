"""Arithmetic of rows of coefficients, whole planes or windows of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from certood.analysis.bounds.operations import Rows
from certood.analysis.bounds.relaxations import Relaxation
from certood.analysis.bounds.windows import Windows


@dataclass(frozen=True)
class Passage:
    """How rows go back through an elementwise operation y of x, about a point where x = x₀ and y = y₀.

    A·(y − y₀) ≥ (A·middle − |A|·half)·(x − x₀) + A·shift − |A|·gap, elementwise, then summed. Planes are (N, *shape), or
    (N, R, *shape) where every row has slopes of its own.
    """

    middle: Tensor
    half: Tensor
    shift: Tensor
    gap: Tensor

    @staticmethod
    def about(lines: Relaxation, x: Tensor, y: Tensor) -> Passage:
        """A positive coefficient takes the lower line, a negative one the upper; through (x₀, y₀) neither need go."""
        below = lines.lower_slope * x + lines.lower_shift - y
        above = lines.upper_slope * x + lines.upper_shift - y
        return Passage(
            (lines.lower_slope + lines.upper_slope) / 2,
            (lines.upper_slope - lines.lower_slope) / 2,
            (below + above) / 2,
            (above - below) / 2,
        )

    @property
    def planes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four."""
        return self.middle, self.half, self.shift, self.gap

    def to(self, dtype: torch.dtype) -> Passage:
        """The same in another precision."""
        return Passage(*(plane.to(dtype) for plane in self.planes))

    @cached_property
    def columns(self) -> tuple[Tensor, int]:
        """The elements (N, L) of which anything remains, those with two different lines first, and how many of these there are.

        Lists shorter than the longest go on with elements of which less remains.
        """
        middle, half, shift, gap = self.planes
        two = half != 0
        rank = two.to(torch.int8) + (two | (middle != 0) | (shift != 0) | (gap != 0)).to(torch.int8)
        count = int((rank > 0).sum(1).max())
        order = rank.argsort(dim=1, descending=True, stable=True)[:, :count]
        return order, int(two.sum(1).max())

    @cached_property
    def chosen(self) -> Passage:
        """The planes of those elements."""
        return Passage(*(plane.gather(1, self.columns[0]) for plane in self.planes))

    @cached_property
    def _laid(self) -> dict[tuple[int, ...], list[Tensor]]:
        return {}

    def laid(self, rows: Windows) -> list[Tensor]:
        """The planes as these windows gather them."""
        key = rows.step, *rows.margins
        if key not in self._laid:
            self._laid[key] = [rows.laid(plane) for plane in self.planes]
        return self._laid[key]


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


def magnitude(rows: Rows, plane: Tensor) -> Tensor:
    """Σ |row|·plane (N, R), for a plane (N, *shape), or one a row, of no negative value."""
    return contracted(rows, rows.values.abs() if isinstance(rows, Windows) else rows.abs(), plane)


def contracted(rows: Rows, values: Tensor, plane: Tensor) -> Tensor:
    """Σ values·plane (N, R), for values that stand where those of the rows do, and a plane (N, *shape), or one a row."""
    plane = plane.to(values.dtype)
    if isinstance(rows, Windows) and not rows.covers:
        return (rows.gather(rows.laid(plane)) * values).flatten(2).sum(2)
    return _contracted(values, _beside(rows, plane))


def relaxed(rows: Rows, passage: Passage, *, both: bool = False) -> tuple[Rows, Tensor]:
    """Rows before an elementwise operation, and constants, from rows after it.

    With `both`, for the rows and for their negatives: (N, 2R, …), the negatives last.
    """
    if isinstance(rows, Windows):
        if not rows.covers and passage.middle.ndim == 4:
            return _relaxed_windows(rows, passage, both)
        # Slopes of their own for every row are whole planes.
        whole = rows if rows.covers else rows.spread()
        values, constant = _relaxed(whole.values, [_beside(whole, plane) for plane in passage.planes], both)
        return whole.repeated(values, 1 + both), constant
    return _relaxed(rows, [_beside(rows, plane) for plane in passage.planes], both)


def _beside(rows: Rows, plane: Tensor) -> Tensor:
    """A plane (N, *shape), or (N, R, *shape), so that it broadcasts against rows: (N, 1 or R, …), channels last for windows."""
    if isinstance(rows, Windows):
        return rows.beside(plane)
    return plane if plane.ndim == rows.ndim else plane[:, None]


def _relaxed(values: Tensor, planes: list[Tensor], both: bool) -> tuple[Tensor, Tensor]:
    middle, half, shift, gap = planes
    size = values.abs()
    moved, lost = _contracted(values, shift), _contracted(size, gap)
    through = values * middle
    if both:
        return _two_sided(through, size.mul_(half)), _two_sided(moved, lost)
    return through.addcmul_(size, half, value=-1), moved - lost


def _relaxed_windows(rows: Windows, passage: Passage, both: bool) -> tuple[Rows, Tensor]:
    middle, half, shift, gap = (rows.gather(plane) for plane in passage.laid(rows))
    values, size = rows.values, rows.values.abs()
    moved, lost = shift.mul_(values).flatten(2).sum(2), gap.mul_(size).flatten(2).sum(2)
    through, spread = middle.mul_(values), half.mul_(size)
    # Beyond the border every plane is zero, and so are the rows now.
    if both:
        found = replace(rows.repeated(_two_sided(through, spread), 2), clean=True)
        return found, _two_sided(moved, lost)
    return replace(rows, values=through.sub_(spread), clean=True), moved - lost


def relaxed_through(rows: Tensor, passage: Passage, matrix: Tensor, *, both: bool) -> tuple[Tensor, Tensor]:
    """`relaxed` for rows (N, R, D), then times the lines (N, L, …) of a matrix that stand at `passage.columns`.

    Rows and their negatives differ by what has two different lines only: a fraction of the second product.
    """
    order, count = passage.columns
    middle, half, shift, gap = (plane[:, None] for plane in passage.chosen.planes)
    places = order[:, None].expand(-1, rows.shape[1], -1)
    values = rows.index_select(2, order[0]) if len(rows) == 1 else rows.gather(2, places)
    size = values.abs()
    moved, lost = _contracted(values, shift), _contracted(size, gap)
    if not both:
        values.mul_(middle)[..., :count].addcmul_(size[..., :count], half[..., :count], value=-1)
        return values @ matrix, moved - lost
    through = values.mul_(middle) @ matrix
    spread = (size[..., :count] * half[..., :count]) @ matrix[:, :count]
    return _two_sided(through, spread), _two_sided(moved, lost)


def _two_sided(through: Tensor, spread: Tensor) -> Tensor:
    """through − spread, the rows, and −through − spread, those of their negatives: (N, 2R, …)."""
    count = through.shape[1]
    found = through.new_empty(len(through), 2 * count, *through.shape[2:])
    torch.sub(through, spread, out=found[:, :count])
    torch.add(through, spread, out=found[:, count:]).neg_()
    return found


def _contracted(values: Tensor, plane: Tensor) -> Tensor:
    """Σ values·plane (N, R), for a plane (N, 1 or R, …)."""
    if len(values) == 1 and plane.shape[1] == 1:
        return values.flatten(2) @ plane.flatten()
    return (values * plane).flatten(2).sum(2)
