"""Optimisers by name."""

from certood.registry import Registry
from certood.train.optimisers.adam import Adam
from certood.train.optimisers.base import Optimiser
from certood.train.optimisers.sgd import SGD

__all__ = ["OPTIMISERS", "Optimiser"]

OPTIMISERS: Registry[Optimiser] = Registry("optimiser", "certood.optimisers", {"sgd": SGD, "adam": Adam})
