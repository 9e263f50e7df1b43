"""Networks in ONNX files."""

from pathlib import Path

import torch
from torch import nn

from certood.errors import CheckpointError
from certood.models.classifier import Normalise

# The newest set of ONNX operators that onnx2torch knows all of.
ONNX_OPERATORS = 17


def onnx_model(
    path: Path, outputs: int, shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> nn.Module:
    """The network of an ONNX file behind a normalisation; raises CheckpointError where it cannot be read or does not fit."""
    try:
        import onnx2torch  # noqa: F401, PLC0415 (optional)
    except ImportError as error:
        raise CheckpointError("ONNX files need the extra: pip install 'certood[onnx]'") from error
    try:
        inner = _converted(path)
    except Exception as error:
        raise CheckpointError(f"{path} could not be converted ({type(error).__name__}: {error})") from error
    model = nn.Sequential(Normalise(mean, std), inner).eval()
    with torch.no_grad():
        found = model(torch.zeros(1, *shape))
    if found.shape != (1, outputs):
        raise CheckpointError(f"{path} gives {tuple(found.shape)} for one image, expected (1, {outputs})")
    return model


def _converted(path: Path) -> nn.Module:
    """The network of an ONNX file; one of a newer operator set than the converter knows is taken back to that first."""
    import onnx  # noqa: PLC0415
    import onnx2torch  # noqa: PLC0415
    from onnx import version_converter  # noqa: PLC0415

    described = onnx.load(str(path))
    try:
        found: nn.Module = onnx2torch.convert(described)
    except NotImplementedError:
        if max(opset.version for opset in described.opset_import) <= ONNX_OPERATORS:
            raise
        found = onnx2torch.convert(version_converter.convert_version(described, ONNX_OPERATORS))
    return found
