"""Comparing our network with independent evaluations of its ONNX file: onnx.reference in float64, and onnxruntime."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certood.errors import CheckpointError
from certood.onnx.graph import convert_floats
from certood.onnx.images import witness_images
from certood.onnx.network import OnnxNetwork
from certood.onnx.reference_operators import exact_operators

REFERENCE_TOLERANCE = 1e-9
RUNTIME_TOLERANCE = 1e-4
# Logits smaller than this are compared as if they were so large: the rounding of what cancels in them is no error.
SMALLEST_SCALE = {"onnx.reference": 1e-6, "onnxruntime": 1e-2}
TYPE_DOUBLE = 11
# For onnx.reference: an attribute by operator that is left out, or has another value.
REFERENCE_ATTRIBUTES: dict[str, tuple[str, float | None]] = {
    "BatchNormalization": ("momentum", 1.0),
    "LayerNormalization": ("stash_type", None),
    "GroupNormalization": ("stash_type", TYPE_DOUBLE),
}


def compare(network: OnnxNetwork, model: Any, path: Path) -> tuple[str, ...]:
    """Compare the network with other evaluations of its standardised model and of its file; returns what was found.

    The images are evaluated one by one by the others and all at once by the network, in float64. Differences are relative to
    the largest logit: at most 1e-9 to onnx.reference, 1e-4 to onnxruntime, which computes in float32. Where onnx.reference
    cannot evaluate the file, or contradicts both others, onnxruntime decides alone. Raises CheckpointError with the difference
    where there is a larger one, and where nothing else can evaluate the file.
    """
    images = witness_images(network.image_shape)
    ours, singly, entered = _own(network, images)
    if not np.isfinite(ours).all():
        raise CheckpointError(f"{path}: the network's logits are not finite on images in [0, 1]")
    if (mixed := _difference(ours, singly, "onnx.reference")) > REFERENCE_TOLERANCE:
        raise CheckpointError(
            f"{path}: the network mixes the images of a batch (logits differ by {mixed:.1e} from those of each image on its own)"
        )
    exact, problem = _reference(network, model, entered)
    fast, absent = _runtime(network, path, entered)
    if exact is None and fast is None:
        raise CheckpointError(
            f"{path} cannot be compared with another evaluation of it (onnx.reference: {problem}; onnxruntime: {absent}); "
            "install onnxruntime"
        )
    to_fast = None if fast is None else _difference(ours, fast, "onnxruntime")
    if to_fast is not None and not to_fast <= RUNTIME_TOLERANCE:
        raise _contradiction(path, network, model, images, "onnxruntime", to_fast)
    found = [f"onnxruntime: {absent}" if to_fast is None else f"onnxruntime: largest relative difference {to_fast:.1e}"]
    if exact is None:
        return (f"onnx.reference: {problem}", *found)
    to_exact = _difference(ours, exact, "onnx.reference")
    if to_exact <= REFERENCE_TOLERANCE:
        return (f"onnx.reference: largest relative difference {to_exact:.1e}", *found)
    if fast is not None and (between := _difference(fast, exact, "onnxruntime")) > RUNTIME_TOLERANCE:
        return (f"onnx.reference: contradicts onnxruntime by {between:.1e}, which decides", *found)
    raise _contradiction(path, network, model, images, "onnx.reference", to_exact)


def _own(network: OnnxNetwork, images: Tensor) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Logits of all images at once and of each one on its own, and what the network takes for the images, in float64."""
    plain = copy.deepcopy(network).double()
    with torch.no_grad():
        together = plain(images).numpy()
        singly = torch.cat([plain(image.unsqueeze(0)) for image in images]).numpy()
        return together, singly, plain.layout(images).numpy()


def _difference(one: NDArray[Any], two: NDArray[Any], other: str) -> float:
    """The largest difference relative to the largest logit, or `SMALLEST_SCALE`; infinite for other shapes or not finite."""
    if one.shape != two.shape or not np.isfinite(two).all():
        return float("inf")
    return float(np.abs(one - two).max() / max(np.abs(two).max(), SMALLEST_SCALE[other]))


class _Reference:
    """The evaluation of a standardised model (a ModelProto) by onnx.reference, in float64.

    Its batch normalisation of operator sets 9 to 13 mixes statistics of the batch into the stored ones, by 1 − momentum; its
    layer normalisation knows no type of the statistics (`stash_type`) but float32, and computes in that of its input.
    """

    def __init__(self, model: Any) -> None:
        from onnx import helper, numpy_helper  # noqa: PLC0415 (optional)
        from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 (optional)

        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        # Large files: the weights are held once, and not in a copy of the model too.
        self.weights = {
            name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in arrays.items()
        }
        double = helper.make_model(
            helper.make_graph(model.graph.node, "reference", model.graph.input, model.graph.output),
            opset_imports=model.opset_import,
        )
        convert_floats(double, "FLOAT", "DOUBLE")
        for node in double.graph.node:
            without, instead = REFERENCE_ATTRIBUTES.get(node.op_type, ("", None))
            if without:
                others = [attribute for attribute in node.attribute if attribute.name != without]
                del node.attribute[:]
                node.attribute.extend(others if instead is None else [*others, helper.make_attribute(without, instead)])
        self.evaluator: Any = ReferenceEvaluator(double, new_ops=exact_operators())

    def __call__(self, name: str, entered: NDArray[Any], *, every: bool = False) -> Any:
        """The outputs for an input of this name, or with `every` all values by their names."""
        return self.evaluator.run(None, self.weights | {name: entered}, intermediate=every)


def _reference(network: OnnxNetwork, model: Any, entered: NDArray[Any]) -> tuple[NDArray[Any] | None, str]:
    """Logits by onnx.reference in float64, or why it has none."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            reference = _Reference(model)
            rows = [reference(network.input_name, entered[i : i + 1])[0] for i in range(len(entered))]
            return np.concatenate([_row(row) for row in rows]).astype(np.float64), ""
    except Exception as error:  # its NumPy code raises whatever it likes
        return None, f"cannot evaluate the file ({type(error).__name__}: {str(error).strip().splitlines()[:1]})"


def _runtime(network: OnnxNetwork, path: Path, entered: NDArray[Any]) -> tuple[NDArray[Any] | None, str]:
    """Logits by onnxruntime in the precision of the file, or why it has none."""
    try:
        import onnxruntime  # noqa: PLC0415 (optional)
    except ImportError:
        return None, "not installed"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0]
        kind = np.float64 if "double" in entry.type else np.float32
        rows = [session.run(None, {entry.name: entered[i : i + 1].astype(kind)})[0] for i in range(len(entered))]
        return np.concatenate([_row(row) for row in rows]).astype(np.float64), ""
    except Exception as error:  # its errors have no common base
        return None, f"cannot evaluate the file ({str(error).strip().splitlines()[:1]})"


def _row(logits: Any) -> NDArray[Any]:
    """The logits of one image (1, K), whatever axes of size 1 follow."""
    return np.asarray(logits).reshape(1, -1)


def _contradiction(
    path: Path, network: OnnxNetwork, model: Any, images: Tensor, other: str, difference: float
) -> CheckpointError:
    where = _first_difference(network, model, images)
    return CheckpointError(
        f"{path}: certood's network and {other} differ by {difference:.1e} of the largest logit{where}; such a network is not "
        "used, because what is certified would not be what the file computes. Please report it with the file"
    )


def _first_difference(network: OnnxNetwork, model: Any, images: Tensor) -> str:
    """The first node whose value differs from that of onnx.reference for one image, in words, or nothing."""
    plain = copy.deepcopy(network).double()
    with torch.no_grad(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for image in images:
            own = plain.values(image.unsqueeze(0), keep=True)
            try:
                theirs = _Reference(model)(network.input_name, plain.layout(image.unsqueeze(0)).numpy(), every=True)
            except Exception:  # its NumPy code raises whatever it likes
                return ""
            for step in network.steps:
                for name in step.node.outputs:
                    one, two = own.get(name), theirs.get(name)
                    if one is None or not isinstance(two, np.ndarray) or one.dtype == torch.bool:
                        continue
                    if tuple(one.shape) != two.shape or _largest(one.numpy(), two) > REFERENCE_TOLERANCE:
                        return f", first at {step.node}"
    return ""


def _largest(one: NDArray[Any], two: NDArray[Any]) -> float:
    if not one.size:
        return 0.0
    scale = max(float(np.abs(two).max()), SMALLEST_SCALE["onnx.reference"])
    return float(np.abs(one - two).max()) / scale
