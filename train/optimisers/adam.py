"""Adam."""

from dataclasses import dataclass

from torch import optim

from certood.train.optimisers.base import LearningRate, ParameterGroups, WeightDecay


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba, ICLR 2015) with the weights' l2 penalty in the gradient."""

    learning_rate: LearningRate = 1e-3
    weight_decay: WeightDecay = 5e-4

    def __call__(self, groups: ParameterGroups) -> optim.Optimizer:
        """torch's Adam of these groups."""
        return optim.Adam([dict(group) for group in groups], lr=self.learning_rate, weight_decay=self.weight_decay)
