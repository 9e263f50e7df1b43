"""ATen operations as functions of simpler ones that can be bounded: one plain torch function each.

torch.export traces them in place of the operation. One more is one more function, in the file of its subject:

>>> @decomposes("mish")
... def mish(x):
...     return x * torch.tanh(F.softplus(x))
"""

from certood.analysis.bounds.decompositions import (  # noqa: F401 (they register themselves)
    activations,
    attention,
    convolutions,
    elementwise,
    normalisation,
    reductions,
    shapes,
)
from certood.analysis.bounds.decompositions.table import DECOMPOSITIONS, decomposes, decomposition_table

__all__ = ["DECOMPOSITIONS", "decomposes", "decomposition_table"]
