"""Operators that onnx.reference evaluates through float32, by their definitions in float64, with SciPy."""

import math
from typing import Any

import numpy as np
from scipy.special import erf


def float64_operators() -> list[Any]:
    """Erf, Gelu and HardSwish for `onnx.reference.ReferenceEvaluator(new_ops=...)`."""
    from onnx.reference.op_run import OpRun  # noqa: PLC0415 (optional)

    class Erf(OpRun):
        """2 / √π ∫ e^(−t²) from 0 to x."""

        op_domain = ""

        def _run(self, x: Any) -> tuple[Any]:
            return (erf(x),)

    class Gelu(OpRun):
        """x Φ(x), or its approximation by a hyperbolic tangent."""

        op_domain = ""

        def _run(self, x: Any, approximate: str | None = None) -> tuple[Any]:
            if approximate == "tanh":
                return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
            return (0.5 * x * (1 + erf(x / math.sqrt(2))),)

    class HardSwish(OpRun):
        """x · min(max(x / 6 + 1/2, 0), 1)."""

        op_domain = ""

        def _run(self, x: Any) -> tuple[Any]:
            return (x * np.clip(x / 6 + 0.5, 0, 1),)

    return [Erf, Gelu, HardSwish]
