"""What an engine is: something that bounds rows of a network's logits over balls."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from certood.analysis.bounds.ball import LpBall
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.outer import OuterBoxes
from certood.analysis.bounds.score_bounds import RowBounds
from certood.errors import CertoodError


class Engine(ABC):
    """A way to compute bounds, with its properties.

    `norms` are the balls that it bounds soundly; `linear` says whether its analyses also give linear functions of the image
    (`linear_lower`), from which radii follow in closed form, and which branch and bound refines.
    """

    name: ClassVar[str]
    norms: ClassVar[frozenset[float]] = frozenset({math.inf, 2.0, 1.0})
    linear: ClassVar[bool] = False

    @abstractmethod
    def analyse(
        self,
        graph: Graph,
        ball: LpBall,
        method: str,
        *,
        iterations: int = 20,
        max_memory: float | None = None,
        dtype: torch.dtype = torch.float64,
        outer: OuterBoxes | None = None,
    ) -> RowBounds:
        """What is known of a graph over a ball by one of METHODS.

        `outer` is what holds over balls that contain these, for an engine that can make use of it. Raises CertoodError as
        `require` does, or for a method that it does not have, and CannotCertify for a norm or a network that it does not take.
        """

    def images_at_once(self, graph: Graph, max_memory: float, dtype: torch.dtype, method: str) -> int | None:
        """How many images are best analysed together; None for all."""
        return None

    def require(self) -> None:  # noqa: B027 (nothing to do for an engine that needs no other package)
        """Raise CertoodError where the engine is not installed."""

    def check_norm(self, norm: float) -> None:
        """Raise CertoodError for balls of a norm that the engine does not bound."""
        if norm not in self.norms:
            able = ", ".join(f"l_{one:g}" for one in sorted(self.norms))
            raise CertoodError(f"the engine {self.name} bounds {able} balls only, not l_{norm:g}; leave --engine out")
