"""Samplers by name: which of a pool of candidate outliers enter the training step."""

from certood.registry import Registry
from certood.train.samplers.base import Sampler
from certood.train.samplers.cluster import ClusterSampler
from certood.train.samplers.diverse import DiverseSampler
from certood.train.samplers.greedy import GreedySampler
from certood.train.samplers.posterior import PosteriorSampler
from certood.train.samplers.random import RandomSampler

__all__ = ["SAMPLERS", "Sampler"]

SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    "certood.samplers",
    {
        "random": RandomSampler,
        "greedy": GreedySampler,
        "diverse": DiverseSampler,
        "cluster": ClusterSampler,
        "posterior": PosteriorSampler,
    },
)
