"""The parts of a run, put together from its recipe."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from certood.analysis.bounds.differentiable import DifferentiableBounds, require_fixed_statistics
from certood.data.source import to_pixels
from certood.models.classifier import Classifier
from certood.train.batch_statistics import fix_statistics
from certood.train.certified.bounding import CertifiedTraining
from certood.train.certified.ramp import Ramp
from certood.train.penalty import GradientPenalty
from certood.train.recipe import Recipe
from certood.train.samplers import Sampler
from certood.train.schedules import scheduler
from certood.train.setup import TrainingData
from certood.train.step import TrainingStep


@dataclass
class Training:
    """What a run holds while it trains: the parts, and the progress made so far."""

    fabric: Fabric
    recipe: Recipe
    data: TrainingData
    network: Classifier
    learned: nn.ParameterDict
    step: _FabricModule
    optimiser: _FabricOptimizer
    schedule: LRScheduler
    sampler: Sampler
    steps: int
    eps: Ramp | None = None
    epochs_done: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Everything from which training resumes; tensors and plain values only."""
        return {
            "epochs_done": self.epochs_done,
            "rows": self.rows,
            "network": self.network.state_dict(),
            "learned": self.learned.state_dict(),
            "optimiser": self.optimiser.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            # The scale of losses in float16 follows the steps that overflowed; other precisions keep nothing.
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self.network.load_state_dict(state["network"])
        self.learned.load_state_dict(state["learned"])
        self.optimiser.optimizer.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        # Earlier versions stored none.
        if precision := state.get("precision"):
            self.fabric.strategy.precision.load_state_dict(precision)
        self.epochs_done, self.rows = state["epochs_done"], state["rows"]


def assemble(fabric: Fabric, recipe: Recipe, data: TrainingData, network: Classifier, steps: int) -> Training:
    """Everything that training needs, on its device; `steps` is the number of steps in an epoch."""
    data = TrainingData(
        replace(data.id, train=data.id.train.to(fabric.device)),
        data.auxiliary.to(fabric.device) if data.auxiliary is not None and recipe.uses_outliers else data.auxiliary,
        data.auxiliary_validation,
        data.ood,
    )
    if recipe.model.fixed_statistics:
        fix_statistics(network)
    if fabric.device.type == "cpu" and recipe.run.precision == "bf16-mixed":
        # Processors convolve short floats faster with the channels last; activations follow the weights.
        network.to(memory_format=torch.channels_last)
    penalty = GradientPenalty(recipe.gradient.number, recipe.gradient.mode, recipe.gradient.step, recipe.gradient.every)
    step = TrainingStep(network, recipe.objective.objective, penalty, _certified(recipe, data, network))
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if step.learned:
        # A scalar of the objective is no weight that should be small.
        groups.append({"params": list(step.learned.parameters()), "weight_decay": 0.0})
    optimiser = recipe.optimiser.optimiser(groups)
    schedule = scheduler(
        recipe.optimiser.learning_rates,
        optimiser,
        warmup=recipe.optimiser.warmup,
        steps=steps,
        epochs=recipe.training.epochs,
    )
    wrapped, wrapped_optimiser = fabric.setup(step, optimiser)
    return Training(
        fabric=fabric,
        recipe=recipe,
        data=data,
        network=network,
        learned=step.learned,
        step=wrapped,
        optimiser=wrapped_optimiser,
        schedule=schedule,
        sampler=recipe.sampler.sampler,
        steps=steps,
        eps=recipe.certified.schedule(recipe.training.epochs, steps) if recipe.certified is not None else None,
    )


def _certified(recipe: Recipe, data: TrainingData, network: Classifier) -> CertifiedTraining | None:
    """The bounds of certified training; raises CannotCertify where the network has none, before anything is trained."""
    section = recipe.certified
    if section is None:
        return None
    require_fixed_statistics(network.train())
    example = to_pixels(data.id.train.batch(torch.zeros(1, dtype=torch.int64)))
    bounds = DifferentiableBounds(network, example, section.method)
    return CertifiedTraining(section.certified_term, bounds, section.side, float(section.norm), section.quantile)
