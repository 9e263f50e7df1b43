"""Learning-rate schedules by name, and the warm-up before any of them."""

from torch import optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from certood.registry import Registry
from certood.train.schedules.base import Schedule
from certood.train.schedules.constant import Constant
from certood.train.schedules.cosine import Cosine
from certood.train.schedules.steps import Steps

__all__ = ["SCHEDULES", "Schedule", "scheduler"]

SCHEDULES: Registry[Schedule] = Registry(
    "schedule", "certood.schedules", {"cosine": Cosine, "step": Steps, "constant": Constant}
)


def scheduler(schedule: Schedule, optimiser: optim.Optimizer, *, warmup: int, steps: int, epochs: int) -> LRScheduler:
    """torch's scheduler, advanced once a step: a linear warm-up from 1/(warmup + 1) of the learning rate, then the schedule."""
    base: float = optimiser.param_groups[0]["lr"]

    def factor(step: int) -> float:
        rate = schedule(base, max(step, warmup), begin=warmup, steps=steps, epochs=epochs) / base
        return rate * min(1.0, (step + 1) / (warmup + 1))

    return LambdaLR(optimiser, factor)
