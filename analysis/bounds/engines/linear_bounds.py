"""certood's own engine: intervals and linear bounds."""

import torch

from certood.analysis.bounds.ball import LpBall
from certood.analysis.bounds.engines.base import Engine
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.linear.analysis import Analysis
from certood.analysis.bounds.memory import images_at_once
from certood.analysis.bounds.methods import analyse
from certood.analysis.bounds.outer import OuterBoxes


class LinearBoundEngine(Engine):
    """Intervals, CROWN-IBP, CROWN and α-CROWN over balls of every norm."""

    name = "certood"
    linear = True

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
    ) -> Analysis:
        """See `certood.analysis.bounds.analyse`."""
        return analyse(graph, ball, method, iterations=iterations, max_memory=max_memory, dtype=dtype, outer=outer)

    def images_at_once(self, graph: Graph, max_memory: float, dtype: torch.dtype, method: str) -> int | None:
        """As many as fit into memory, and for rows no more than fit into the caches."""
        return images_at_once(graph, max_memory, dtype, method)
