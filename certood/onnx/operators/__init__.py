"""One function for each ONNX operator; importing this package registers them all."""

from certood.onnx.operators import (
    activations,
    constants,
    convolution,
    elementwise,
    indexing,
    linear,
    normalisation,
    pooling,
    reductions,
    resize,
    shapes,
)

__all__ = [
    "activations",
    "constants",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "normalisation",
    "pooling",
    "reductions",
    "resize",
    "shapes",
]
