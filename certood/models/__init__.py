"""Classifiers with normalisation inside, by name."""

from certood.models.catalogue import ARCHITECTURES, build_model
from certood.models.classifier import Classifier, Interface, Normalise

__all__ = ["ARCHITECTURES", "Classifier", "Interface", "Normalise", "build_model"]
