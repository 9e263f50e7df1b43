"""A small ONNX graph as text, and its evaluation by onnx.reference and onnxruntime, which share no code with certood."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ORACLES = ("onnx.reference", "onnxruntime")
# Constants that a graph has where it names them.
SHARED = {"centre": np.float32(0.5), "width": np.float32(4), "tenth": np.float32(0.1)}


@dataclass(frozen=True)
class Idiom:
    """A graph from `x` (N, *shape) to `y`, which is flattened: nodes as text, and constants by name.

    `FLOAT` in the text stands for the number of the floating-point type of the model. `batch` is the declared size of the
    first axis. `oracles` are those that implement the standard here; why not the other one, says `because`.
    """

    name: str
    body: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (3, 6, 6)
    opset: int = 17
    batch: str = "N"
    oracles: tuple[str, ...] = ORACLES
    because: str = ""
    reference_tolerance: float = 1e-9

    def model(self, *, double: bool = False) -> Any:
        import onnx

        kind = "double" if double else "float"
        sizes = ", ".join([self.batch, *map(str, self.shape)])
        body = self.body.replace("FLOAT", str(onnx.TensorProto.DOUBLE if double else onnx.TensorProto.FLOAT))
        text = (
            f'<ir_version: 8, opset_import: ["" : {self.opset}]>\nidiom ({kind}[{sizes}] x) => ({kind}[M, K] logits) {{\n'
            f"{body}\n logits = Flatten (y)\n}}"
        )
        model = onnx.parser.parse_model(text)
        used = {name: value for name, value in SHARED.items() if f"{name})" in self.body}
        for name, value in {**used, **self.constants}.items():
            array = np.asarray(value)
            if array.dtype.kind == "f":
                array = array.astype(np.float32).astype(np.float64 if double else np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return model

    def write(self, path: Path) -> Path:
        import onnx

        onnx.save(self.model(), str(path))
        return path


def random(*shape: int, seed: int = 0) -> Array:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": random(5, 3, 3, 3), "b": random(5, seed=1), "v": random(45, 4, seed=2), "d": random(4, seed=3)}
NETWORK = Idiom(
    "a small network",
    "c = Conv <strides = [2, 2]> (x, w, b)\n r = Relu (c)\n f = Flatten (r)\n y = Gemm (f, v, d)",
    WEIGHTS,
    (3, 8, 8),
)


def images(idiom: Idiom, count: int = 3) -> Array:
    """Images in [0, 1], a third of their values 0 or 1, in the shape of the network's input."""
    generator = np.random.default_rng(len(idiom.name))
    return np.clip(generator.random((count, *idiom.shape)) * 1.5 - 0.25, 0, 1)


def by_reference(idiom: Idiom, x: Array) -> Array:
    """The logits of each image on its own, by onnx.reference, with everything in float64."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(idiom.model(double=True))
    return np.concatenate([evaluator.run(None, {"x": row[None]})[0].reshape(1, -1) for row in x])


def by_runtime(idiom: Idiom, x: Array) -> Array:
    """The logits of each image on its own, by onnxruntime, in float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        idiom.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rows = [session.run(None, {"x": row[None].astype(np.float32)})[0].reshape(1, -1) for row in x]
    return np.concatenate(rows).astype(np.float64)
