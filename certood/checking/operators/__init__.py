"""The operators that the checker reads; every file registers its own."""

from certood.checking.operators import activations, averages, constants, layers, layout

__all__ = ["activations", "averages", "constants", "layers", "layout"]
