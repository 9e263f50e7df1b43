"""A network as steps that the checker knows, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from certood.checking.steps import Array, Box, Step

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Placed:
    """A step of a network: its name in the file, and which earlier values it reads (0 is the image)."""

    name: str
    step: Step
    inputs: tuple[int, ...]


@dataclass
class Network:
    """A network from an image of `shape` (C, H, W) to logits (K,): value 0 is the image, value i + 1 that of step i."""

    shape: Shape
    steps: list[Placed] = field(default_factory=list)
    outputs: int = 0

    def values(self, image: Array) -> list[Array]:
        """All values of an image (C, H, W), rounded as they come, the logits (K,) last."""
        found = [image.ravel().astype(np.float64)]
        for placed in self.steps:
            found.append(placed.step.value([found[source] for source in placed.inputs]))
        return found

    def size(self, values: Sequence[Array]) -> float:
        """The largest sum of magnitudes of which a logit is made, of all `values` of an image, from the last ReLU or branch on:
        what rounding there is relative to, also where the sum nearly cancels."""
        rows, rest = np.eye(self.outputs), np.zeros(self.outputs)
        place, found = len(self.steps), np.abs(values[-1])
        while place and len(self.steps[place - 1].inputs) == 1 and not self.steps[place - 1].step.bends:
            placed = self.steps[place - 1]
            (place,) = placed.inputs
            (rows,), constant = placed.step.back(rows, [Box(values[place], values[place])], None)
            rest = rest + np.abs(constant)
            found = np.maximum(found, np.abs(rows) @ np.abs(values[place]) + rest)
        return float(found.max())

    def value(self, image: Array) -> Array:
        """Logits (K,) of an image (C, H, W), rounded as they come."""
        return self.values(image)[-1]
