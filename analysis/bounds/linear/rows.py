"""Arithmetic of rows of coefficients, whole planes or windows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.base import Rows
from certood.analysis.bounds.operations.relaxations import Relaxation

# Rows of an image with so many numbers are contracted by a product of their own.
ALONE = 2**15


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
        below = torch.addcmul(lines.lower_shift - y, lines.lower_slope, x)
        above = torch.addcmul(lines.upper_shift - y, lines.upper_slope, x)
        middle, shift = torch.lerp(lines.lower_slope, lines.upper_slope, 0.5), torch.lerp(below, above, 0.5)
        return Passage(middle, middle - lines.lower_slope, shift, shift - below)

    @property
    def planes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four."""
        return self.middle, self.half, self.shift, self.gap

    def widened(self, loss: Tensor) -> Passage:
        """The same with a larger gap."""
        return replace(self, gap=self.gap + loss)

    def to(self, dtype: torch.dtype) -> Passage:
        """The same in another precision."""
        return Passage(*(plane.to(dtype) for plane in self.planes))

    def columns(self) -> list[tuple[Tensor, int]]:
        """For every image the elements (L,) of which anything remains, those with two different lines first, and how many of
        these there are."""
        middle, half, shift, gap = self.planes
        two = half != 0
        some = two | (middle != 0) | (shift != 0) | (gap != 0)
        order = (two.to(torch.int8) + some.to(torch.int8)).argsort(dim=1, descending=True, stable=True)
        counts = zip(some.sum(1).tolist(), two.sum(1).tolist(), strict=True)
        return [(places[:count], twice) for places, (count, twice) in zip(order, counts, strict=True)]

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
    values = rows.values if isinstance(rows, Windows) else rows
    plane = plane.to(values.dtype)
    if isinstance(rows, Windows) and not rows.covers:
        return rows.gather(rows.laid(plane)).mul_(values.abs()).flatten(2).sum(2)
    plane = beside(rows, plane)
    # Image by image, so that what is made of one stays in the caches.
    alone = plane.shape[1] == 1 and values[0].numel() >= ALONE
    parts = zip(values.split(1), plane.split(1), strict=True) if alone else ((values, plane),)
    return torch.cat([_contracted(own.abs(), one) for own, one in parts])


def contracted(rows: Rows, plane: Tensor) -> Tensor:
    """Σ row·plane (N, R), for a plane (N, *shape), or one a row."""
    values = rows.values if isinstance(rows, Windows) else rows
    plane = plane.to(values.dtype)
    if isinstance(rows, Windows) and not rows.covers:
        return rows.gather(rows.laid(plane)).mul_(values).flatten(2).sum(2)
    return _contracted(values, beside(rows, plane))


def relaxed(rows: Rows, passage: Passage, *, both: bool = False) -> tuple[Rows, Tensor]:
    """Rows before an elementwise operation, and constants, from rows after it.

    With `both`, for the rows and for their negatives: (N, 2R, …), the negatives last.
    """
    if isinstance(rows, Windows) and not rows.covers:
        return _relaxed_windows(rows, passage, both)
    return relaxed_each(rows, Passage(*(beside(rows, plane) for plane in passage.planes)), both=both)


def relaxed_each(rows: Rows, passage: Passage, *, both: bool = False) -> tuple[Rows, Tensor]:
    """`relaxed` with planes that are laid out as the values of the rows."""
    if not isinstance(rows, Windows):
        return _relaxed(rows, passage, both)
    values, constant = _relaxed(rows.values, passage, both)
    # Beyond the border every plane is zero, and so are the rows now.
    return replace(rows.repeated(values, 1 + both), clean=True), constant


def beside(rows: Rows, plane: Tensor) -> Tensor:
    """A plane (N, *shape), or (N, R, *shape), so that it broadcasts against rows: (N, 1 or R, …), channels last for windows."""
    if isinstance(rows, Windows):
        return rows.beside(plane)
    return plane if plane.ndim == rows.ndim else plane[:, None]


def met(rows: Rows, plane: Tensor) -> Tensor:
    """A plane (N, *shape) as the values of rows meet it: gathered for windows, zero beyond the border."""
    if isinstance(rows, Windows) and not rows.covers:
        return rows.gather(rows.laid(plane))
    return beside(rows, plane)


def _relaxed(values: Tensor, passage: Passage, both: bool) -> tuple[Tensor, Tensor]:
    middle, half, shift, gap = passage.planes
    size = values.abs()
    moved, lost = _contracted(values, shift), _contracted(size, gap)
    through = values * middle
    if both:
        return _both(through, size.mul_(half)), _both(moved, lost)
    return through.addcmul_(size, half, value=-1), moved - lost


def _relaxed_windows(rows: Windows, passage: Passage, both: bool) -> tuple[Rows, Tensor]:
    middle, half, shift, gap = (rows.gather(plane) for plane in passage.laid(rows))
    values, size = rows.values, rows.values.abs()
    moved, lost = shift.mul_(values).flatten(2).sum(2), gap.mul_(size).flatten(2).sum(2)
    through, spread = middle.mul_(values), half.mul_(size)
    # Beyond the border every plane is zero, and so are the rows now.
    if both:
        found = replace(rows.repeated(_both(through, spread), 2), clean=True)
        return found, _both(moved, lost)
    return replace(rows, values=through.sub_(spread), clean=True), moved - lost


@dataclass(frozen=True)
class Door:
    """What an elementwise operation lets through of one image, and the lines (L, D) of the matrix before it that stand there.

    Planes of the passage are (L,); its first `two` elements have two different lines.
    """

    order: Tensor
    two: int
    passage: Passage
    matrix: Tensor

    @staticmethod
    def of(passage: Passage, weight: Tensor) -> list[Door]:
        """One for every image, for planes (N, D') and a matrix (D', D)."""
        return [
            Door(order, two, Passage(*(plane[index, order] for plane in passage.planes)), weight.index_select(0, order))
            for index, (order, two) in enumerate(passage.columns())
        ]


def relaxed_through(rows: Tensor, doors: Sequence[Door], *, both: bool) -> tuple[Tensor, Tensor]:
    """`relaxed` for rows (N, R, D'), then times the matrix: image by image, so that all of one stays in the caches.

    Rows and their negatives differ by what has two different lines only: a fraction of the second product.
    """
    count = rows.shape[1]
    found = rows.new_empty(len(rows), (1 + both) * count, doors[0].matrix.shape[1])
    constant = rows.new_empty(found.shape[:2])
    for own, door, through, added in zip(rows, doors, found, constant, strict=True):
        middle, half, shift, gap = door.passage.planes
        values = own.index_select(1, door.order)
        size = values.abs()
        moved, lost = values @ shift, size @ gap
        spread = size[:, : door.two].mul_(half[: door.two])
        values.mul_(middle)
        if not both:
            values[:, : door.two] -= spread
            torch.mm(values, door.matrix, out=through)
            torch.sub(moved, lost, out=added)
            continue
        torch.mm(values, door.matrix, out=through[:count])
        spread = spread @ door.matrix[: door.two]
        torch.add(through[:count], spread, out=through[count:]).neg_()
        through[:count] -= spread
        torch.cat([moved - lost, -moved - lost], out=added)
    return found, constant


def _both(through: Tensor, spread: Tensor) -> Tensor:
    """through − spread, the rows, and −through − spread, those of their negatives: (N, 2R, …)."""
    count = through.shape[1]
    found = through.new_empty(len(through), 2 * count, *through.shape[2:])
    torch.sub(through, spread, out=found[:, :count])
    torch.add(through, spread, out=found[:, count:]).neg_()
    return found


def _contracted(values: Tensor, plane: Tensor) -> Tensor:
    """Σ values·plane (N, R), for a plane (N, 1 or R, …)."""
    if plane.shape[1] == 1 and len(values) == 1:
        return values.flatten(2) @ plane.flatten()
    if plane.shape[1] == 1 and values[0].numel() >= ALONE:
        return torch.stack([own.flatten(1) @ one.flatten() for own, one in zip(values, plane, strict=True)])
    return (values * plane).flatten(2).sum(2)
