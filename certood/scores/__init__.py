"""OOD scores as functions of the logits; higher is more outlying, always."""

import difflib
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from certood.errors import CertoodError


@runtime_checkable
class Score(Protocol):
    """What a score is: a name, and a function from logits (N, K) to scores (N,), higher for outliers."""

    @property
    def name(self) -> str:
        """The name in files and on the command line."""
        ...

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        ...


@dataclass(frozen=True)
class Energy:
    """Energy S = −T·logsumexp(f/T) (Liu et al., NeurIPS 2020, eq. 4, with the sign that makes outliers high).

    Units: those of the logits. Raises CertoodError unless the temperature is positive.
    """

    temperature: float = 1.0
    name: str = "energy"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise CertoodError(f"expected an energy temperature > 0, got {self.temperature}")

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        return -self.temperature * torch.logsumexp(logits / self.temperature, dim=-1)


@dataclass(frozen=True)
class MSP:
    """Maximum softmax probability S = −maxₖ softmax(f)ₖ, in [−1, −1/K] (Hendrycks & Gimpel, ICLR 2017)."""

    name: str = "msp"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        return -logits.softmax(dim=-1).amax(dim=-1)


@dataclass(frozen=True)
class MaxLogit:
    """Maximum logit S = −maxₖ fₖ (Hendrycks et al., ICML 2022)."""

    name: str = "max-logit"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        return -logits.amax(dim=-1)


@dataclass(frozen=True)
class Entropy:
    """Entropy of the softmax S = −Σ pₖ log pₖ, in [0, log K]."""

    name: str = "entropy"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""
        log_probabilities = logits.log_softmax(dim=-1)
        return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)


@dataclass(frozen=True)
class AbsentClass:
    """Probability of the extra last class, S = softmax(f)_K with K+1 outputs (Mohseni et al., AAAI 2020)."""

    name: str = "absent-class"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K+1)."""
        return logits.softmax(dim=-1)[..., -1]


SCORES: dict[str, type[Score]] = {
    "energy": Energy,
    "msp": MSP,
    "max-logit": MaxLogit,
    "entropy": Entropy,
    "absent-class": AbsentClass,
}


def score_by_name(name: str) -> Score:
    """The score of that name with its default parameters; raises CertoodError that names the nearest known one."""
    if name not in SCORES:
        near = difflib.get_close_matches(name, SCORES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CertoodError(f"unknown score {name!r}{hint} Known: {', '.join(SCORES)}.")
    return SCORES[name]()


def suitable_scores(absent_class: bool) -> list[Score]:
    """The scores that make sense for a network: the absent class only where there is one."""
    return [score_by_name(name) for name in SCORES if absent_class or name != "absent-class"]


def score_logits(score: Score, logits: Tensor, *, absent_class: bool) -> Tensor:
    """Scores (N,) of the logits of a network that may have an absent class (the last output).

    Every score but AbsentClass looks at the classes alone: the absent class' logit is high for outliers, so that it would
    make an outlier's energy look in-distribution.
    """
    return score(logits[..., :-1] if absent_class and not isinstance(score, AbsentClass) else logits)
