"""The network with its score as ONNX files, compared with the module at given images."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from certood.analysis.bounds.float64_copy import float64_copy
from certood.errors import CertoodError
from certood.files import replacing
from certood.onnx import read_onnx
from certood.scores import Score

# Relative to the largest value: what computing in float32 may cost.
RUNTIME_TOLERANCE = 1e-4
# And in float64: numbers in Python code, such as a slope or a temperature, are rounded to float32 in the file.
EXACT_TOLERANCE = 1e-6


class Scored(nn.Module):
    """A network and a score of its outputs: images (N, C, H, W) to scores (N, 1)."""

    def __init__(self, network: nn.Module, score: Score) -> None:
        super().__init__()
        self.network, self.score = network, score

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, 1)."""
        return self.score(self.network(images))[:, None]


class ScoredAsRows(Scored):
    """The same by values (N, 1, K) and (N, 1) alone: many verifiers know no value that is one number an image."""

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, 1)."""
        return self.score(self.network(images)[:, None])


def scored(network: nn.Module, score: Score, images: Tensor) -> Scored:
    """The network with its score for export: as rows where the score is one of the last axis, as it is at these images."""
    rows, plain = ScoredAsRows(network, score), Scored(network, score)
    try:
        with torch.no_grad():
            same = torch.equal(rows(images), plain(images))
    except (RuntimeError, IndexError):
        same = False
    return rows if same else plain


@dataclass(frozen=True)
class Comparison:
    """By how much a file and the module differ at most, relative to the largest value, on so many images."""

    images: int
    onnxruntime_float32: float
    float64: float


def require_exporters() -> None:
    """Raise CertoodError where a package is missing that writing or comparing ONNX files needs."""
    try:
        import onnx  # noqa: F401, PLC0415 (optional)
        import onnxruntime  # noqa: F401, PLC0415 (optional)
        import onnxscript  # noqa: F401, PLC0415 (optional)
    except ImportError as error:
        raise CertoodError(f"exporting needs the extra: pip install 'certood[export]' ({error})") from error


def write_onnx(module: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    """Write a module for one image of this shape (C, H, W) at a time, input X and output Y, nothing folded or rounded.

    Raises CertoodError where PyTorch cannot export it.
    """
    plain = copy.deepcopy(module).cpu().eval()
    try:
        with warnings.catch_warnings(), replacing(path) as temporary:
            warnings.simplefilter("ignore")
            torch.onnx.export(
                plain, (torch.rand(1, *shape),), temporary, input_names=["X"], output_names=["Y"],
                dynamo=True, optimize=False, external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:  # whatever the exporter raises, with pages of advice for its developers
        first = next(iter(str(error).strip().splitlines()), "")
        raise CertoodError(f"PyTorch cannot write this network as ONNX: {type(error).__name__}: {first}") from error


def compared(module: nn.Module, images: Tensor, path: Path) -> Comparison:
    """The file against the module at images (N, C, H, W): by onnxruntime in float32, and evaluated in float64.

    Raises CertoodError where they differ by more than rounding, and where onnxruntime lacks an operator, as of float64.
    """
    import onnxruntime  # noqa: PLC0415 (optional)

    plain = copy.deepcopy(module).cpu().eval()
    exact = float64_copy(plain)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever onnxruntime raises: its errors share no class of their own
        first = next(iter(str(error).strip().splitlines()), "")
        raise CertoodError(f"onnxruntime cannot run the network as it was written: {first}") from error
    read = read_onnx(path, input_shape=(images.shape[1], images.shape[2], images.shape[3])).double()
    with torch.no_grad():
        fast = [session.run(None, {"X": image.unsqueeze(0).numpy()})[0] for image in images.float()]
        to_runtime = _difference(torch.from_numpy(np.concatenate(fast)).double(), plain(images.float()).double())
        to_exact = _difference(read(images.double()), exact(images.double()))
    found = Comparison(len(images), to_runtime, to_exact)
    if not (to_runtime <= RUNTIME_TOLERANCE and to_exact <= EXACT_TOLERANCE):
        raise CertoodError(
            f"{path} is not the network: relative differences {to_runtime:.1e} by onnxruntime, {to_exact:.1e} in float64; "
            "please report it"
        )
    return found


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
