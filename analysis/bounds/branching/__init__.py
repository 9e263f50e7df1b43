"""Branch and bound: where one linear bound does not decide, balls are split at inputs of activations.

β-CROWN (Wang et al., NeurIPS 2021, arXiv 2103.06624), which splits ReLUs by sign. On the part of a ball where σ·(z − k) ≥ 0
for an input z of an activation, a place k and a sign σ, the activation has a kink less, or bends less, and for every β ≥ 0
subtracting β·σ·(z − k) from a function leaves a lower bound of it there: one β for every split of the part, all found by ascent
together.
"""

from certood.analysis.bounds.branching.functions import Functions, Mixture, TangentFamily
from certood.analysis.bounds.branching.points import branching_nodes
from certood.analysis.bounds.branching.rules import RULES
from certood.analysis.bounds.branching.search import Effort, branched_least
from certood.analysis.bounds.branching.values import branched_rows, branched_score, score_functions

__all__ = [
    "RULES",
    "Effort",
    "Functions",
    "Mixture",
    "TangentFamily",
    "branched_least",
    "branched_rows",
    "branched_score",
    "branching_nodes",
    "score_functions",
]
