"""Experiment trackers by name: who is told the recipe, the rows of training.csv and the evaluation of a run."""

from certood.registry import Registry
from certood.train.trackers.base import Tracker
from certood.train.trackers.mlflow import MLflowTracker
from certood.train.trackers.tensorboard import TensorBoardTracker
from certood.train.trackers.wandb import WandbTracker

__all__ = ["TRACKERS", "Tracker"]

TRACKERS: Registry[Tracker] = Registry(
    "tracker",
    "certood.trackers",
    {"tensorboard": TensorBoardTracker, "mlflow": MLflowTracker, "wandb": WandbTracker},
)
