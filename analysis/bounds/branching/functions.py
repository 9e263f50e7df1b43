"""What branch and bound bounds from below: functions of the logits, each by a family of linear functions below it.

Every part of a ball chooses a member of the family for itself.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from certood.scores import Tangents


class Family(Protocol):
    """Linear functions of the logits below R functions, one for any parameters."""

    def __call__(self, parameters: Tensor, functions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (D, K) of the logits and constants (D,), for parameters (D, P) of the functions of these numbers (D,)."""
        ...


@dataclass(frozen=True)
class Functions:
    """R functions of the logits, over the balls `images` (R,) of a batch.

    `goals` (R,) are numbers 0 … G − 1: the bound of a goal is the least of the bounds of its functions. `start` (R, P) are the
    parameters of `family` with which the ascent begins, and `known` (R,) bounds that hold already.
    """

    images: Tensor
    goals: Tensor
    start: Tensor
    known: Tensor
    family: Family

    @property
    def count(self) -> int:
        """The number of goals."""
        return int(self.goals.max()) + 1


@dataclass(frozen=True)
class Mixture:
    """Weighted means of M alternatives that all lie below a function: rows (R, M, K), constants (R, M).

    The parameters are logarithms of the weights. A single alternative has none that matter.
    """

    rows: Tensor
    constants: Tensor

    def __call__(self, parameters: Tensor, functions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (D, K) and constants (D,)."""
        rows, constants = self.rows[functions], self.constants[functions]
        if rows.shape[1] == 1:
            return rows[:, 0], constants[:, 0]
        weights = parameters.softmax(1)
        return (weights[:, None] @ rows)[:, 0], (weights * constants).sum(1)

    def start(self, values: Tensor) -> Tensor:
        """Parameters (R, M) by which the alternative with the largest of these values (R, M) has most of the weight."""
        best = torch.nan_to_num(values, nan=-torch.inf).argmax(1, keepdim=True)
        return torch.zeros_like(values).scatter_(1, best, STEEPNESS)


# e⁵ to one: near enough to the best alternative, far enough from the flat ends of the softmax.
STEEPNESS = 5.0


@dataclass(frozen=True)
class TangentFamily:
    """±(tangents of a logsumexp) plus `shift`, of which the functions belong to `groups` (R,); the parameters are log-weights."""

    tangents: Tangents
    sign: int
    groups: Tensor
    shift: float = 0.0

    def __call__(self, parameters: Tensor, functions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (D, K) and constants (D,)."""
        rows, constants = self.tangents.member(self.groups[functions], parameters)
        return self.sign * rows, self.sign * constants + self.shift
