"""Outlier objectives by name: what a network is asked to do on outliers, besides cross-entropy on ID images."""

from certood.registry import Registry
from certood.train.objectives.absent_class import AbsentClassTarget
from certood.train.objectives.base import Objective
from certood.train.objectives.cross_entropy import CrossEntropyOnly
from certood.train.objectives.energy import EnergyMargin
from certood.train.objectives.guard import GuardOutput
from certood.train.objectives.logistic import LogisticEnergy
from certood.train.objectives.outlier_exposure import OutlierExposure

__all__ = ["OBJECTIVES", "Objective"]

OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    "certood.objectives",
    {
        "cross-entropy": CrossEntropyOnly,
        "outlier-exposure": OutlierExposure,
        "energy": EnergyMargin,
        "absent-class": AbsentClassTarget,
        "logistic": LogisticEnergy,
        "guard": GuardOutput,
    },
)
