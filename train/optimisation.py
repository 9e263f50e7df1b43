"""Optimisers and learning-rate schedules by recipe."""

from collections.abc import Iterable

from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from certood.train.recipe import OptimiserSection


def build_optimiser(parameters: Iterable[nn.Parameter], section: OptimiserSection) -> optim.Optimizer:
    """SGD (momentum, Nesterov) or Adam with the recipe's settings."""
    if section.name == "adam":
        return optim.Adam(parameters, lr=section.learning_rate, weight_decay=section.weight_decay)
    return optim.SGD(
        parameters,
        lr=section.learning_rate,
        momentum=section.momentum,
        nesterov=section.nesterov and section.momentum > 0,
        weight_decay=section.weight_decay,
    )


def build_schedule(optimiser: optim.Optimizer, section: OptimiserSection, *, steps: int, epochs: int) -> LRScheduler:
    """A schedule that is advanced once a step: cosine over the whole run, or factors at milestone epochs."""
    if section.schedule == "cosine":
        return CosineAnnealingLR(optimiser, T_max=steps * epochs, eta_min=section.final_learning_rate)
    milestones = [epoch * steps for epoch in section.milestones] if section.schedule == "step" else []
    return MultiStepLR(optimiser, milestones=milestones, gamma=section.factor)
