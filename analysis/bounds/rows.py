"""Arithmetic of rows of coefficients, whole planes or windows of them."""

from dataclasses import replace

from torch import Tensor

from certood.analysis.bounds.operations import Rows
from certood.analysis.bounds.relaxations import Relaxation
from certood.analysis.bounds.windows import Windows


def summed(first: Rows, second: Rows) -> Rows:
    """The sum of two sets of rows of the same node."""
    if isinstance(first, Windows):
        return first.add(second)
    return second.add(first) if isinstance(second, Windows) else first + second


def magnitude(rows: Rows, plane: Tensor) -> Tensor:
    """Σ |row|·plane (N, R), for a plane (N, *shape), or one a row, of no negative value."""
    if isinstance(rows, Windows):
        return _contracted_windows(rows.values.abs(), rows.gather(plane.to(rows.values.dtype)))
    return _contracted(rows.abs(), plane.to(rows.dtype))


def relaxed(rows: Rows, lines: Relaxation) -> tuple[Rows, Tensor]:
    """Rows before an activation, from rows after it: a positive coefficient takes the lower line, a negative the upper.

    The lines are for (N, *shape), or have slopes of their own for every row.
    """
    if isinstance(rows, Windows):
        return _relaxed_windows(rows, lines)

    def place(line: Tensor) -> Tensor:
        return line[:, None] if line.ndim < rows.ndim else line

    negative = rows.clamp_max(0)
    constant = _contracted(negative, lines.upper_shift)
    if lines.shifted:
        constant = constant + _contracted(rows.clamp_min(0), lines.lower_shift)
    if lines.loss is not None:
        constant = constant - _contracted(rows.abs(), lines.loss)
    return _weighted(rows, negative, place(lines.lower_slope), place(lines.upper_slope)), constant


def _weighted(rows: Tensor, negative: Tensor, lower_slope: Tensor, upper_slope: Tensor) -> Tensor:
    """max(A, 0)·lower + min(A, 0)·upper, in few large temporaries: fresh memory is what costs most here."""
    return (rows * lower_slope).addcmul_(negative, upper_slope - lower_slope)


def _contracted(rows: Tensor, line: Tensor) -> Tensor:
    """Σ rows·line (N, R), for a line (N, *shape) or one for every row."""
    if line.ndim == rows.ndim:
        return (rows * line).flatten(2).sum(2)
    return (rows.flatten(2) @ line.flatten(1)[:, :, None])[..., 0]


def _relaxed_windows(rows: Windows, lines: Relaxation) -> tuple[Rows, Tensor]:
    if lines.lower_slope.ndim == 5:  # slopes of their own for every row, which are whole planes then
        found, constant = relaxed(rows.dense(), lines)
        assert isinstance(found, Tensor)
        return Windows.whole(found), constant
    stacked, parts = lines.stacked
    lower_slope, upper_slope, upper_shift, *more = rows.gather(stacked).chunk(parts, 4)
    negative = rows.values.clamp_max(0)
    constant = _contracted_windows(negative, upper_shift)
    if lines.shifted:
        constant = constant + _contracted_windows(rows.values.clamp_min(0), more[0])
    if lines.loss is not None:
        constant = constant - _contracted_windows(rows.values.abs(), more[-1])
    return replace(rows, values=_weighted(rows.values, negative, lower_slope, upper_slope)), constant


def _contracted_windows(values: Tensor, line: Tensor) -> Tensor:
    """Σ values·line (N, R), for a line (N, R or 1, h, w, C)."""
    if line.shape[1] == 1:
        return (values.flatten(2) @ line.flatten(2).transpose(1, 2))[..., 0]
    return (values * line).flatten(2).sum(2)
