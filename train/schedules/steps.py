"""A learning rate that drops at milestones."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True)
class Steps:
    """The learning rate times a factor for each of several epochs that are over."""

    milestones: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], Field(description="Epochs after which the learning rate drops.")
    ] = ()
    factor: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="What the learning rate is multiplied by at a milestone.")
    ] = 0.1

    def __call__(self, learning_rate: float, step: int, *, begin: int, steps: int, epochs: int) -> float:
        """The learning rate of a step."""
        rate = learning_rate
        for epoch in self.milestones:
            if step >= epoch * steps:
                rate *= self.factor
        return rate
