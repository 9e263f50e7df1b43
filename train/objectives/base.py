"""What an outlier objective is: what a network is asked to do on outliers, besides cross-entropy on ID images.

Every objective has a detection score S and two margins, which are also those of the gradient term: its gates are open where an
ID image has S ≤ m_in and an outlier has S ≥ m_out (design: flatten the score where it is already right).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field
from torch import Tensor

from certood.scores import Score

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False, description="λ_S, the weight of the outlier term.")]


def number(value: float | None) -> float | None:
    """The value; raises ValueError for what is not a number."""
    if value is not None and math.isnan(value):
        raise ValueError("expected a number, inf or -inf")
    return value


# Where gates alone read a margin it may be infinite: they are always open then.
MarginIn = Annotated[
    float,
    AfterValidator(number),
    Field(description='m_in, in units of the score; "auto" is the median of ID images, by training.init.'),
]
MarginOut = Annotated[
    float,
    AfterValidator(number),
    Field(description='m_out, in units of the score; "auto" is the median of outliers, by training.init.'),
]
Finite = Field(allow_inf_nan=False)


class Objective(ABC):
    """λ_S·L_S, the score that detects, and the margins that the gradient term uses; a frozen dataclass of parameters.

    L_S is a function of scores alone, so that certified training can hand it bounds over a ball in place of values: an
    outlier's lower bound, an ID image's upper bound. Every parameter has a default.
    """

    needs_outliers: ClassVar[bool] = True
    """Whether training by it takes auxiliary outliers."""

    classifies: ClassVar[bool] = True
    """Whether the network classifies, by cross-entropy; one that does not has a single output, and guards another detector."""

    absent_class: ClassVar[bool] = False
    """Whether the network has one more output, the last one, than there are classes."""

    @property
    @abstractmethod
    def weight(self) -> float:
        """λ_S."""

    @property
    @abstractmethod
    def margin_in(self) -> float | None:
        """m_in, in units of the score."""

    @property
    @abstractmethod
    def margin_out(self) -> float | None:
        """m_out, in units of the score."""

    @property
    @abstractmethod
    def score(self) -> Score:
        """S of logits (N, K): the score of the detector, by which candidates are picked and gates opened."""

    @property
    def trained_score(self) -> Score:
        """The score of logits (N, K) that the outlier term reads; S itself unless the term is another function."""
        return self.score

    @property
    def learned(self) -> Mapping[str, float]:
        """Start values of scalars that are learned together with the network, by name; none by default."""
        return {}

    def margins(self, learned: Mapping[str, Tensor]) -> tuple[float | Tensor, float | Tensor]:
        """m_in and m_out of the gradient term's gates, given the present values of the learned scalars."""
        assert self.margin_in is not None
        assert self.margin_out is not None
        return self.margin_in, self.margin_out

    @abstractmethod
    def outlier_term(self, scores_in: Tensor, scores_out: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """L_S, a scalar, of the trained scores of ID images (N,) and of outliers (M,)."""
