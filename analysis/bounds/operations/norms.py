"""Norms of images and of linear maps."""

import math

# The dual exponent q of each norm p.
DUAL = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}
# Rounding of norms computed in float64, relative.
SLACK = 1e-9
