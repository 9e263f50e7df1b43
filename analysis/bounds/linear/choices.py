"""What an ascent varies in a linear bound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certood.analysis.bounds.linear.rows import broadcastable
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.base import Interval, Rows
from certood.analysis.bounds.operations.relaxations import crown_slope


@dataclass(frozen=True)
class Choices:
    """What a linear bound leaves open, by the node of an activation: choices of its lower line, multiples to subtract.

    Choices, in [0, 1], are (N, 1 or R, *shape), or as the values of the rows where these are windows; (N, *shape) where all rows
    share them (`shared`). An activation without any gets CROWN's own, one for every coefficient that reaches it or for every
    neuron, as a new leaf. `subtracted` are multiples m (N, 1, *shape) and places k (N, *shape): m·(z − k) is subtracted, z being
    what the activation reads, which is sound only where m·(z − k) is not negative. Coefficients that arrive at activations are
    noted in `reached`, if there is one; `planes` are those of an activation's boxes, references and losses as its rows gather
    them, or as they are where choices are shared; they stay the same from step to step.
    """

    slopes: dict[int, Tensor] = field(default_factory=dict)
    subtracted: Mapping[int, Sequence[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    reached: dict[int, Tensor] | None = None
    planes: dict[int, list[Tensor]] = field(default_factory=dict)
    shared: bool = False

    def shared_slope(self, index: int, box: Interval, dtype: torch.dtype) -> Tensor:
        """The choices (N, *shape) of an activation that all rows share, for a box of its input."""
        if index not in self.slopes:
            self.slopes[index] = crown_slope(*box).to(dtype).contiguous().requires_grad_()
        return self.slopes[index]

    def slope(self, index: int, rows: Rows, lower: Tensor, upper: Tensor) -> Tensor:
        """The choices of an activation as they broadcast against these rows, for bounds of its input that do so too."""
        values = rows.values if isinstance(rows, Windows) else rows
        windows = isinstance(rows, Windows) and not rows.covers
        if index not in self.slopes:
            start = crown_slope(lower, upper).expand(values.shape)
            if isinstance(rows, Windows) and rows.covers:
                start = rows.repeated(start, 1).dense()
            self.slopes[index] = start.to(values.dtype).contiguous().requires_grad_()
        return self.slopes[index] if windows else broadcastable(rows, self.slopes[index])
