"""Certified scores in the outlier term."""

from dataclasses import dataclass

from torch import Tensor

from certood.train.certified.base import CertifiedTerm, OutlierTerm, ScoreBounds


@dataclass(frozen=True)
class CertifiedScore(CertifiedTerm):
    """The objective reads S_lb(x_out; ε) in place of S(x_out), and S_ub(x_in; ε) in place of S(x_in) where ID images are bounded.

    Every objective costs less where an outlier scores higher, so that its term bounds the loss of every image of the ball.
    """

    reads_clean_outliers = False

    def outlier_term(self, term: OutlierTerm, inside: ScoreBounds, outside: ScoreBounds) -> Tensor:
        """The objective's term of bounds."""
        return term(inside.upper, outside.lower)
