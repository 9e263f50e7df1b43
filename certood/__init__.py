"""Train out-of-distribution detectors by gradient regularisation, measure them, and certify them.

Images are tensors in [0, 1] of shape (N, C, H, W) everywhere (pixel space); a score is higher for outliers everywhere.
"""

from importlib.metadata import version

__version__ = version("certood")
