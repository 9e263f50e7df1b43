"""The radius of certified training as it grows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """ε by step: 0 until `start` epochs, then linear to `eps` over `length` epochs, then `eps`; `steps` in an epoch."""

    eps: float
    start: float
    length: float
    steps: int

    def __call__(self, step: int) -> float:
        """ε of a step, counted from 0 over the whole training."""
        passed = step + 1 - self.start * self.steps
        if passed <= 0:
            return 0.0
        return self.eps * min(passed / max(self.length * self.steps, 1), 1.0)
