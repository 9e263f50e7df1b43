"""Certified terms by name: how bounds of the score over balls enter the loss."""

from certood.registry import Registry
from certood.train.certified.base import CertifiedTerm, ScoreBounds
from certood.train.certified.mtl_ibp import MtlIbp
from certood.train.certified.oscillation import Oscillation
from certood.train.certified.score import CertifiedScore

__all__ = ["CERTIFIED_TERMS", "CertifiedTerm", "ScoreBounds"]

CERTIFIED_TERMS: Registry[CertifiedTerm] = Registry(
    "certified term",
    "certood.certified_terms",
    {"score": CertifiedScore, "oscillation": Oscillation, "mtl-ibp": MtlIbp},
)
