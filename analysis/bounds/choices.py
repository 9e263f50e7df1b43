"""What an ascent varies in a linear bound."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Choices:
    """What a linear bound leaves open, by the node that a ReLU reads: lower slopes, multiples of the node to subtract.

    Subtracting is sound only where the multiple is not negative. Coefficients that arrive at the ReLUs are noted in `reached`.
    """

    slopes: Mapping[int, Tensor]
    subtracted: Mapping[int, Tensor] = field(default_factory=dict)
    reached: dict[int, Tensor] = field(default_factory=dict)
