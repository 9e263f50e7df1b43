"""How large a value may become that a file asks for by its sizes alone."""

import math
from collections.abc import Sequence

from certood.onnx.calls import Call, Size

# Elements of one image's value: 2 GiB in float64.
MOST_ELEMENTS = 2**28


def check_size(call: Call, sizes: Sequence[Size]) -> None:
    """Raise CheckpointError where a value of this shape would be too large to hold."""
    if all(isinstance(size, int) for size in sizes) and math.prod(sizes) > MOST_ELEMENTS:
        raise call.node.error(
            f"it makes a value of shape {tuple(sizes)}; at most {MOST_ELEMENTS} elements are supported"
        )
