"""Stochastic gradient descent."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import optim

from certood.train.optimisers.base import LearningRate, ParameterGroups, WeightDecay


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, Nesterov's where there is any."""

    learning_rate: LearningRate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum.")] = 0.9
    nesterov: Annotated[bool, Field(description="Nesterov's momentum; without effect where momentum is 0.")] = True
    weight_decay: WeightDecay = 5e-4

    def __call__(self, groups: ParameterGroups) -> optim.Optimizer:
        """torch's SGD of these groups."""
        return optim.SGD(
            [dict(group) for group in groups],
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
        )
