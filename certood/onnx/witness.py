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
from certood.onnx.reference_operators import float64_operators

REFERENCE_TOLERANCE = 1e-9
RUNTIME_TOLERANCE = 1e-4


def compare(network: OnnxNetwork, model: Any, path: Path) -> tuple[str, ...]:
    """Compare the network with other evaluations of its standardised model and of its file; returns what was found.

    The images are evaluated one by one by the others and all at once by the network, in float64. Differences are relative to
    the largest logit, or to 1 if that is smaller: at most 1e-9 to onnx.reference, 1e-4 to onnxruntime, which computes in
    float32. Where onnx.reference cannot evaluate the file, or contradicts both others, onnxruntime decides alone. Raises
    CheckpointError with the difference where there is a larger one, and where nothing else can evaluate the file.
    """
    images = witness_images(network.image_shape)
    plain = copy.deepcopy(network).double()
    with torch.no_grad():
        ours = plain(images).numpy()
        singly = torch.cat([plain(image.unsqueeze(0)) for image in images]).numpy()
        entered = plain.layout(images).numpy()
    if not np.isfinite(ours).all():
        raise CheckpointError(f"{path}: the network's logits are not finite on images in [0, 1]")
    if (mixed := _difference(ours, singly)) > REFERENCE_TOLERANCE:
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
    to_fast = None if fast is None else _difference(ours, fast)
    if to_fast is not None and not to_fast <= RUNTIME_TOLERANCE:
        raise _contradiction(path, network, model, images, "onnxruntime", to_fast)
    found = [f"onnxruntime: {absent}" if to_fast is None else f"onnxruntime: largest relative difference {to_fast:.1e}"]
    if exact is None:
        return (f"onnx.reference: {problem}", *found)
    to_exact = _difference(ours, exact)
    if to_exact <= REFERENCE_TOLERANCE:
        return (f"onnx.reference: largest relative difference {to_exact:.1e}", *found)
    if fast is not None and _difference(fast, exact) > RUNTIME_TOLERANCE:
        return (f"onnx.reference: contradicts onnxruntime by {_difference(fast, exact):.1e}, which decides", *found)
    raise _contradiction(path, network, model, images, "onnx.reference", to_exact)


def _difference(one: NDArray[Any], two: NDArray[Any]) -> float:
    """The largest difference of logits relative to the largest of an image, or to 1; infinite for other shapes or not finite."""
    if one.shape != two.shape or not np.isfinite(two).all():
        return float("inf")
    scale = np.maximum(np.abs(two).max(axis=1, keepdims=True), 1.0)
    return float((np.abs(one - two) / scale).max())


def _doubled(model: Any) -> Any:
    """The model in float64, for onnx.reference.

    Its batch normalisation of operator sets 9 to 13 mixes statistics of the batch into the stored ones, by 1 − momentum.
    """
    from onnx import helper  # noqa: PLC0415 (optional)

    double = copy.deepcopy(model)
    convert_floats(double, "FLOAT", "DOUBLE")
    for node in double.graph.node:
        if node.op_type == "BatchNormalization":
            others = [attribute for attribute in node.attribute if attribute.name != "momentum"]
            del node.attribute[:]
            node.attribute.extend([*others, helper.make_attribute("momentum", 1.0)])
    return double


def _reference(network: OnnxNetwork, model: Any, entered: NDArray[Any]) -> tuple[NDArray[Any] | None, str]:
    """Logits by onnx.reference in float64, or why it has none."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 (optional)

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            evaluator: Any = ReferenceEvaluator(_doubled(model), new_ops=float64_operators())
            rows = [evaluator.run(None, {network.input_name: entered[i : i + 1]})[0] for i in range(len(entered))]
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
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 (optional)

    plain = copy.deepcopy(network).double()
    with torch.no_grad(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for image in images:
            own = plain.values(image.unsqueeze(0), keep=True)
            entered = {network.input_name: plain.layout(image.unsqueeze(0)).numpy()}
            try:
                theirs: Any = ReferenceEvaluator(_doubled(model), new_ops=float64_operators()).run(
                    None, entered, intermediate=True
                )
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
    scale = max(float(np.abs(two).max()), 1.0)
    return float(np.abs(one - two).max()) / scale
