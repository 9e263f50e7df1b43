"""One learning rate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step."""

    def __call__(self, learning_rate: float, step: int, *, begin: int, steps: int, epochs: int) -> float:
        """The learning rate of a step."""
        return learning_rate
