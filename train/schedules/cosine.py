"""A learning rate that falls along a cosine."""

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the learning rate down to a final one (Loshchilov & Hutter, ICLR 2017, eq. 5, without restarts)."""

    final_learning_rate: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="At the end of the training.")
    ] = 0.0
    decay_start: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Epoch until which the learning rate stays; the cosine takes the rest.",
        ),
    ] = 0.0

    def __call__(self, learning_rate: float, step: int, *, begin: int, steps: int, epochs: int) -> float:
        """The learning rate of a step."""
        first = max(begin, round(self.decay_start * steps))
        passed = min(max(step - first, 0) / max(steps * epochs - first, 1), 1.0)
        final = self.final_learning_rate
        return final + (learning_rate - final) * (1 + math.cos(math.pi * passed)) / 2
