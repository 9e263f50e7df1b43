"""Rows of coefficients go back through an elementwise operation, by two lines for every element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from certood.analysis.bounds.linear.rows import row_sums
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.base import Rows
from certood.analysis.bounds.operations.flattening import totals
from certood.analysis.bounds.operations.relaxations import Relaxation


@dataclass(frozen=True)
class CentredRelaxation:
    """Two lines of an elementwise operation y of x, about a point where x = x₀ and y = y₀, as midpoint and half difference.

    A·(y − y₀) ≥ (A·middle − |A|·half)·(x − x₀) + A·shift − |A|·gap, elementwise, then summed. Planes are (N, *shape), or
    (N, R, *shape) where every row has slopes of its own.
    """

    middle: Tensor
    half: Tensor
    shift: Tensor
    gap: Tensor

    @staticmethod
    def about(lines: Relaxation, x: Tensor, y: Tensor) -> CentredRelaxation:
        """A positive coefficient takes the lower line, a negative one the upper; through (x₀, y₀) neither need go."""
        below = torch.addcmul(lines.lower_shift - y, lines.lower_slope, x)
        above = torch.addcmul(lines.upper_shift - y, lines.upper_slope, x)
        middle, shift = torch.lerp(lines.lower_slope, lines.upper_slope, 0.5), torch.lerp(below, above, 0.5)
        return CentredRelaxation(middle, middle - lines.lower_slope, shift, shift - below)

    @property
    def planes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Midpoint, half difference, shift and gap."""
        return self.middle, self.half, self.shift, self.gap

    @property
    def offsets(self) -> Tensor:
        """The larger magnitude of what the two lines are at x₀, less y₀."""
        return self.shift.abs() + self.gap.abs()

    def widened(self, loss: Tensor) -> CentredRelaxation:
        """This relaxation with a larger gap."""
        return replace(self, gap=self.gap + loss)

    def to(self, dtype: torch.dtype) -> CentredRelaxation:
        """This relaxation in another precision."""
        return CentredRelaxation(*(plane.to(dtype) for plane in self.planes))

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
    def of_rows(self) -> CentredRelaxation:
        """This relaxation as its planes broadcast against rows (N, R, *shape)."""
        return CentredRelaxation(*(plane[:, None] for plane in self.planes))

    @cached_property
    def _padded(self) -> dict[tuple[int, ...], list[Tensor]]:
        return {}

    def padded(self, rows: Windows) -> list[Tensor]:
        """The planes as these windows gather them."""
        key = rows.step, *rows.margins
        if key not in self._padded:
            self._padded[key] = [rows.padded(plane) for plane in self.planes]
        return self._padded[key]


def relaxed(rows: Rows, relaxation: CentredRelaxation, *, both: bool = False) -> tuple[Rows, Tensor]:
    """Rows before an elementwise operation, and constants (N, R), from rows after it.

    With `both`, for the rows and for their negatives: (N, 2R, …), the negatives last.
    """
    if isinstance(rows, Windows) and not rows.covers:
        return _relaxed_windows(rows, relaxation, both)
    if isinstance(rows, Windows):
        planes = (rows.channels_last(plane) for plane in relaxation.planes)
        return relaxed_each(rows, CentredRelaxation(*planes), both=both)
    return _relaxed(rows, relaxation.of_rows, both)


def relaxed_each(rows: Rows, relaxation: CentredRelaxation, *, both: bool = False) -> tuple[Rows, Tensor]:
    """`relaxed` with planes that broadcast against the values of the rows."""
    if not isinstance(rows, Windows):
        return _relaxed(rows, relaxation, both)
    values, constant = _relaxed(rows.values, relaxation, both)
    # Beyond the border every plane is zero, and so are the rows now.
    return replace(rows.repeated(values, 1 + both), clean=True), constant


def _relaxed(values: Tensor, relaxation: CentredRelaxation, both: bool) -> tuple[Tensor, Tensor]:
    middle, half, shift, gap = relaxation.planes
    size = values.abs()
    moved, lost = row_sums(values, shift), row_sums(size, gap)
    through = values * middle
    if both:
        return _both(through, size.mul_(half)), _both(moved, lost)
    return through.addcmul_(size, half, value=-1), moved - lost


def _relaxed_windows(rows: Windows, relaxation: CentredRelaxation, both: bool) -> tuple[Rows, Tensor]:
    middle, half, shift, gap = (rows.gather(plane) for plane in relaxation.padded(rows))
    values, size = rows.values, rows.values.abs()
    moved, lost = totals(shift.mul_(values)), totals(gap.mul_(size))
    through, spread = middle.mul_(values), half.mul_(size)
    # Beyond the border every plane is zero, and so are the rows now.
    if both:
        found = replace(rows.repeated(_both(through, spread), 2), clean=True)
        return found, _both(moved, lost)
    return replace(rows, values=through.sub_(spread), clean=True), moved - lost


@dataclass(frozen=True)
class CompactLayer:
    """A matrix and the elementwise operation after it, for one image: only the neurons of which anything remains.

    Planes of the relaxation are (L,), those of these `neurons`; the first `two` have two different lines. The matrix holds
    their lines, (L, D).
    """

    neurons: Tensor
    two: int
    relaxation: CentredRelaxation
    matrix: Tensor

    @staticmethod
    def of_images(relaxation: CentredRelaxation, weight: Tensor) -> list[CompactLayer]:
        """A compact layer for every image, from planes (N, D') and a matrix (D', D)."""
        return [
            CompactLayer(
                neurons,
                two,
                CentredRelaxation(*(plane[index, neurons] for plane in relaxation.planes)),
                weight.index_select(0, neurons),
            )
            for index, (neurons, two) in enumerate(relaxation.columns())
        ]


def relaxed_and_multiplied(rows: Tensor, layers: Sequence[CompactLayer], *, both: bool) -> tuple[Tensor, Tensor]:
    """`relaxed` for rows (N, R, D'), then times the matrix: image by image, so that all of one stays in the caches.

    Rows and their negatives differ by what has two different lines only: a fraction of the second product.
    """
    count = rows.shape[1]
    found = rows.new_empty(len(rows), (1 + both) * count, layers[0].matrix.shape[1])
    constant = rows.new_empty(found.shape[:2])
    for own, layer, through, added in zip(rows, layers, found, constant, strict=True):
        middle, half, shift, gap = layer.relaxation.planes
        values = own.index_select(1, layer.neurons)
        size = values.abs()
        moved, lost = values @ shift, size @ gap
        spread = size[:, : layer.two].mul_(half[: layer.two])
        values.mul_(middle)
        if not both:
            values[:, : layer.two] -= spread
            torch.mm(values, layer.matrix, out=through)
            torch.sub(moved, lost, out=added)
            continue
        torch.mm(values, layer.matrix, out=through[:count])
        spread = spread @ layer.matrix[: layer.two]
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
