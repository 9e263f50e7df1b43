"""What an optimiser of recipes is."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import optim

LearningRate = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="Learning rate before the schedule changes it.")
]
WeightDecay = Annotated[float, Field(ge=0, allow_inf_nan=False, description="Weight of the l2 penalty of the weights.")]

ParameterGroups = Sequence[Mapping[str, Any]]


class Optimiser(Protocol):
    """A frozen dataclass of hyper-parameters that makes a torch optimiser of parameter groups."""

    def __call__(self, groups: ParameterGroups) -> optim.Optimizer:
        """The optimiser of these groups of parameters, in torch's form: {"params": [...], and what differs in the group}."""
        ...
