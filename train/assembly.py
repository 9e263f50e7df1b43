"""The parts of a run, put together from its recipe."""

from dataclasses import dataclass, field, replace
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from certood.models.classifier import Classifier
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
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self.network.load_state_dict(state["network"])
        self.learned.load_state_dict(state["learned"])
        self.optimiser.optimizer.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.epochs_done, self.rows = state["epochs_done"], state["rows"]


def assemble(fabric: Fabric, recipe: Recipe, data: TrainingData, network: Classifier, steps: int) -> Training:
    """Everything that training needs, on its device; `steps` is the number of steps in an epoch."""
    data = TrainingData(
        replace(data.id, train=data.id.train.to(fabric.device)),
        data.auxiliary.to(fabric.device) if data.auxiliary is not None and recipe.uses_outliers else data.auxiliary,
        data.ood,
    )
    penalty = GradientPenalty(recipe.gradient.weight, recipe.gradient.mode, recipe.gradient.step)
    step = TrainingStep(network, recipe.objective.objective, penalty)
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
    )
