"""What a learning-rate schedule of recipes is."""

from typing import Protocol


class Schedule(Protocol):
    """A frozen dataclass of parameters, called with a step."""

    def __call__(self, learning_rate: float, step: int, *, begin: int, steps: int, epochs: int) -> float:
        """The learning rate of a step, counted from 0, in a run of `epochs` epochs of `steps` steps each.

        `learning_rate` is the optimiser's; the schedule acts from step `begin`, where the warm-up ends.
        """
        ...
