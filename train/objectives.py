"""Outlier objectives: what a network is asked to do on outliers, besides cross-entropy on ID images.

Every objective has a score S and two margins, which are also those of the gradient term: its gates are open where an ID
image has S ≤ `margin_in` and an outlier has S ≥ `margin_out` (design: flatten the score where it is already right).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.scores import MSP, AbsentClass, Energy, Score


class Objective(Protocol):
    """λ_S·L_S, and the score and margins that the gradient term uses."""

    @property
    def weight(self) -> float:
        """λ_S."""
        ...

    @property
    def margin_in(self) -> float:
        """m_in, in units of the score."""
        ...

    @property
    def margin_out(self) -> float:
        """m_out, in units of the score."""
        ...

    @property
    def score(self) -> Score:
        """S of logits (N, K)."""
        ...

    def outlier_term(self, logits_in: Tensor, logits_out: Tensor) -> Tensor:
        """L_S, a scalar, of ID logits (N, K) and outlier logits (M, K)."""
        ...


@dataclass(frozen=True)
class CrossEntropyOnly:
    """No outlier term; with a gradient term, its gates are always open unless margins are given."""

    weight: float = 0.0
    margin_in: float = math.inf
    margin_out: float = -math.inf
    score: Score = Energy()

    def outlier_term(self, logits_in: Tensor, logits_out: Tensor) -> Tensor:
        """Zero."""
        return logits_out.new_zeros(())


@dataclass(frozen=True)
class OutlierExposure:
    """Uniform targets on outliers: mean of −(1/K) Σₖ log softmax(f)ₖ (Hendrycks et al., ICLR 2019, eq. 2).

    The score is MSP, as published; gates of a gradient term are always open unless margins are given.
    """

    weight: float = 0.5
    margin_in: float = math.inf
    margin_out: float = -math.inf
    score: Score = MSP()

    def outlier_term(self, logits_in: Tensor, logits_out: Tensor) -> Tensor:
        """Cross-entropy to the uniform distribution, averaged over the outliers."""
        return -logits_out.log_softmax(-1).mean()


@dataclass(frozen=True)
class EnergyMargin:
    """Squared hinges that push ID energy below m_in and outliers' energy above m_out (Liu et al., NeurIPS 2020, eq. 8)."""

    weight: float = 0.1
    margin_in: float = -23.0
    margin_out: float = -5.0
    score: Score = Energy()

    def outlier_term(self, logits_in: Tensor, logits_out: Tensor) -> Tensor:
        """mean relu(S − m_in)² over ID images plus mean relu(m_out − S)² over outliers."""
        inside = F.relu(self.score(logits_in) - self.margin_in).square().mean()
        outside = F.relu(self.margin_out - self.score(logits_out)).square().mean()
        return inside + outside


@dataclass(frozen=True)
class AbsentClassTarget:
    """An extra, last class that outliers belong to: mean −log softmax(f)_K (Mohseni et al., AAAI 2020; NTOM; DOS)."""

    weight: float = 1.0
    margin_in: float = 0.5
    margin_out: float = 0.5
    score: Score = AbsentClass()

    def outlier_term(self, logits_in: Tensor, logits_out: Tensor) -> Tensor:
        """Cross-entropy of outliers to the last class."""
        target = torch.full((len(logits_out),), logits_out.shape[-1] - 1, device=logits_out.device)
        return F.cross_entropy(logits_out, target)
