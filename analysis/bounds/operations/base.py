"""What an operation of a captured network knows of itself: the interfaces that every operation fulfils.

Coefficients of a node are rows A of shape (N, R, *shape): R linear functions per image. `transpose` turns the coefficients
of an operation's output into those of its inputs; what is constant does not enter, as rows are of differences from a point.
Values, boxes and intervals are differentiable with respect to the tensors that an operation holds, in the precision and on the
device of these tensors.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.flattening import flat, flat_rows
from certood.analysis.bounds.operations.relaxations import Relaxation
from certood.errors import CannotCertify

Interval = tuple[Tensor, Tensor]
Rows = Tensor | Windows


class Operation(ABC):
    """An operation on batches. Whatever it does not know of itself has a safe default here.

    `shapes` are those of one sample of every input, `boxes` are intervals of the inputs, of shape (N, *shape).
    """

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""

    @abstractmethod
    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Bounds of the value for inputs in these boxes."""

    def training_interval(self, inputs: Sequence[Interval]) -> Interval:
        """`interval` as training differentiates it: it may leave out what covers rounding, and is for no certificate."""
        return self.interval(inputs)

    def lower_rows(
        self,
        rows: Tensor,
        shapes: Sequence[torch.Size],
        boxes: Sequence[Interval],
        points: Sequence[Tensor],
        value: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Rows B of every input and constants c (N, R) with A·(y − value) ≥ Σ B·(x − point) + c for inputs x in these boxes.

        `points` are inputs (N, *shape) in the boxes, and `value` what the operation makes of them; A = `rows` (N, R, *shape). In
        plain arithmetic that can be differentiated. Raises CannotCertify for an operation without such bounds.
        """
        raise CannotCertify(f"{type(self).__name__} has no linear bounds")

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """For every input a constant L with ‖y(x) − y(x')‖_p ≤ L‖x − x'‖_p within the box, where the other inputs stay as they
        are, p being inf, 2 or 1. Infinite where it is not known."""
        return [math.inf] * len(shapes)

    def element_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The same of the largest change of an element of y: ‖y(x) − y(x')‖_∞ ≤ L‖x − x'‖_p."""
        return self.operator_norm(p, shapes, boxes)

    def combined_change(self, p: float, changes: Sequence[float]) -> float:
        """The change of the value in the p-norm, at most, from the changes that its inputs cause one by one."""
        return sum(changes)

    def gradient(
        self, shapes: Sequence[torch.Size], boxes: Sequence[Interval]
    ) -> list[list[tuple[Operation, torch.Size]]]:
        """For every input the operations that the gradient with respect to the value passes on its way to that with respect to
        the input, each with the shape of its value. Raises CannotCertify where the derivative has no bounds."""
        raise CannotCertify(f"the derivative of {type(self).__name__} has no bounds here")

    def followed_by(self, scale: Tensor, shift: Tensor, shape: torch.Size) -> Operation | None:
        """scale·y + shift of a value y of this shape as one operation; None where that is not known."""
        return None

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """How many products are summed, at most, into a coefficient of an input, from rows of this shape of the value; 0 where
        numbers are only moved."""
        return 1

    @property
    def matrix(self) -> Tensor | None:
        """W (outputs, inputs) of an operation y = Wx + b of vectors."""
        return None

    @property
    def multiples(self) -> Sequence[float] | None:
        """The numbers a of an operation y = a₁x₁ + a₂x₂ + …."""
        return None

    @property
    def kinks(self) -> Sequence[float] | None:
        """Where the pieces of a piecewise linear scalar function meet; None where it is none."""
        return None

    @property
    def adjustable(self) -> bool:
        """Whether a lower line of a scalar function may be chosen."""
        return False

    @property
    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Scale and shift, which broadcast against a sample, of an operation that is scale·x + shift elementwise."""
        return None

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The size of the window of an input of shape `plane` that a window of the output reads; the whole plane if not known."""
        return plane[1:]


class Input(Operation):
    """The image."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """This is never called: the image is given."""
        raise AssertionError("the input node has no inputs")

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """This is never called: the ball is given."""
        raise AssertionError("the input node has no inputs")


class LinearOperation(Operation):
    """An operation y = L(x₁, …) + b."""

    @abstractmethod
    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Rows (N, R, *input shape) of every input: those of Lᵀ, for rows (N, R, *output shape)."""

    def lower_rows(
        self,
        rows: Tensor,
        shapes: Sequence[torch.Size],
        boxes: Sequence[Interval],
        points: Sequence[Tensor],
        value: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Rows of `transpose`, without constants."""
        return self.transpose(rows, shapes), rows.new_zeros(())

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> Sequence[Rows]:
        """What `transpose` gives, for rows that are windows; as whole planes unless the operation knows better."""
        return self.transpose(rows.dense(), shapes)

    def transpose_rows(self, rows: Rows, shapes: Sequence[torch.Size]) -> Sequence[Rows]:
        """What `transpose` gives, for rows of either kind."""
        return self.transpose_windows(rows, shapes) if isinstance(rows, Windows) else self.transpose(rows, shapes)

    def unit_rows(self, neurons: Tensor, shapes: Sequence[torch.Size], plane: torch.Size) -> Rows | None:
        """Rows of the one input that give single outputs (N, R) of a node of this shape; None where that is no shorter than
        `transpose`."""
        return None

    @abstractmethod
    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """For every input of these shapes the operation Lᵀ that maps a gradient with respect to y to one of that input."""

    def gradient(
        self, shapes: Sequence[torch.Size], boxes: Sequence[Interval]
    ) -> list[list[tuple[Operation, torch.Size]]]:
        """The adjoints."""
        return [[(adjoint, shape)] for adjoint, shape in zip(self.adjoints(shapes), shapes, strict=True)]

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """At most as many products as there are outputs."""
        return shape.numel()

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """How many products are summed, at most, into an element of the value of this shape; 0 where numbers are only moved."""
        return sum(size.numel() for size in shapes)

    def residual(self, inputs: Sequence[Tensor], value: Tensor) -> Tensor:
        """How far (N, *shape), at most, a value computed by `forward` from these inputs lies from the exact one."""
        lower, upper = self.interval([(point, point) for point in inputs])
        return torch.maximum(upper - value, value - lower).clamp_min(0)


class Nonlinear(Operation):
    """An operation that is not linear: bounds of its input decide how tight its relaxation is."""

    def unsettled(self, box: Interval) -> Tensor:
        """The inputs, by a mask (N, *shape), for which a tighter box would tighten the relaxation."""
        return box[0] < box[1]


class Elementwise(Nonlinear):
    """A scalar operation on every element, relaxed by two lines each."""

    @abstractmethod
    def lines(self, lower: Tensor, upper: Tensor) -> Relaxation:
        """Two lines on the box (N, *shape)."""

    def lower_rows(
        self,
        rows: Tensor,
        shapes: Sequence[torch.Size],
        boxes: Sequence[Interval],
        points: Sequence[Tensor],
        value: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """A positive coefficient takes the lower line, a negative one the upper."""
        (box,), (point,) = boxes, points
        lines, positive, negative = self.lines(*box), rows.clamp_min(0), rows.clamp_max(0)
        below = lines.lower_slope * point + lines.lower_shift - value
        above = lines.upper_slope * point + lines.upper_shift - value
        back = positive * lines.lower_slope[:, None] + negative * lines.upper_slope[:, None]
        return [back], row_product(positive, below) + row_product(negative, above)

    def lines_at(self, choice: Tensor, lower: Tensor, upper: Tensor) -> Relaxation:
        """Two lines on the box for a choice that broadcasts against it, where `adjustable`: sound for every one in [0, 1]."""
        return self.lines(lower, upper)

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """The window of the output."""
        return size


class JointRelaxation(Nonlinear):
    """An operation whose linear lower bound is found for whole rows at once."""

    @abstractmethod
    def transpose_lower(
        self, rows: Tensor, boxes: Sequence[Interval], shapes: Sequence[torch.Size]
    ) -> tuple[list[Tensor], Tensor]:
        """Rows of every input and constants (N, R) such that their sum bounds rows·y from below on these boxes."""

    def lower_rows(
        self,
        rows: Tensor,
        shapes: Sequence[torch.Size],
        boxes: Sequence[Interval],
        points: Sequence[Tensor],
        value: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Rows and constants of `transpose_lower`, for differences from the points."""
        parts, added = self.transpose_lower(rows, boxes, shapes)
        added = added - row_product(rows, value)
        for part, point in zip(parts, points, strict=True):
            added = added + row_product(part, point)
        return parts, added


def row_product(rows: Tensor, plane: Tensor) -> Tensor:
    """Σ row·plane (N, R) of rows (N, R, *shape) and a plane (N, *shape)."""
    return (flat_rows(rows) @ flat(plane)[..., None])[..., 0]


def in_precision(operation: Operation, dtype: torch.dtype) -> Operation:
    """The operation with all its constants in another precision."""

    def given(name: str) -> bool:
        """Whether an attribute is no `cached_property`, which is computed from the others."""
        return not isinstance(getattr(type(operation), name, None), cached_property)

    parts = {name: value for name, value in vars(operation).items() if given(name)}
    if not any(isinstance(value, (Tensor, Operation)) for value in parts.values()):
        return operation
    found = copy.copy(operation)
    vars(found).clear()
    for name, value in parts.items():
        if isinstance(value, Operation):
            vars(found)[name] = in_precision(value, dtype)
        elif isinstance(value, Tensor) and value.is_floating_point():
            vars(found)[name] = value.to(dtype)
        else:
            vars(found)[name] = value
    return found
