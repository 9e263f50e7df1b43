"""Detectors in files: certood's own checkpoints, somebody else's weights, and ONNX files."""

from collections.abc import Mapping
from pathlib import Path

import torch

from certood.checkpoints.foreign import load_foreign, require_normalisation
from certood.checkpoints.onnx_file import is_onnx, load_onnx
from certood.checkpoints.own import is_own, load_checkpoint, save_checkpoint, stored_identity
from certood.detector import Detector
from certood.errors import CheckpointError
from certood.scores import Score

# Repositories of Hugging Face's hub are named by this and OWNER/NAME.
HUB_PREFIX = "hf:"

__all__ = [
    "HUB_PREFIX",
    "is_onnx",
    "is_own",
    "load",
    "load_checkpoint",
    "load_foreign",
    "load_onnx",
    "require_normalisation",
    "save_checkpoint",
    "stored_identity",
]


def load(
    path: Path | str,
    *,
    architecture: str | None = None,
    classes: int | tuple[str, ...] | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    score: Score | None = None,
    options: Mapping[str, bool | int | float | str] | None = None,
    device: torch.device | str = "cpu",
) -> Detector:
    """The detector of a run directory or checkpoint, of an ONNX file, or, with `architecture`, of somebody else's weights.

    `hf:OWNER/NAME` is a repository of Hugging Face's hub that `certood push` made, whose checkpoint is downloaded.

    A file `*.onnx` needs nothing else; what is given is checked against it (see `load_onnx`). Other foreign weights need
    `classes` (names or their number) and `input_shape` (C, H, W) as well; `mean` and `std` are their normalisation, one number
    per channel (default: that of the file, or none). Both come without γ, see `Detector.calibrated`. A checkpoint of a network
    of the user's own code needs `architecture` too, since no code that a file names is run. Raises CheckpointError where the
    file is missing, damaged, or does not fit (see `load_foreign`).
    """
    if str(path).startswith(HUB_PREFIX):
        from certood.bridges.hub import fetch_checkpoint  # noqa: PLC0415 (it reads checkpoints itself)

        path = fetch_checkpoint(str(path))
    if is_onnx(path):
        return load_onnx(
            path,
            architecture=architecture,
            classes=classes,
            input_shape=input_shape,
            mean=mean,
            std=std,
            score=score,
            device=device,
        )
    if architecture is None or is_own(path):
        given = {"classes": classes, "input_shape": input_shape, "mean": mean, "std": std, "score": score}
        needless = [name for name, value in given.items() if value is not None]
        if needless:
            why = f"but {path} says that itself" if architecture is not None else "which need `architecture` too"
            raise CheckpointError(f"{', '.join(needless)} describe foreign weights, {why}")
        return load_checkpoint(path, device, architecture=architecture)
    if classes is None or input_shape is None:
        raise CheckpointError("foreign weights need `classes` and `input_shape` beside `architecture`")
    return load_foreign(
        path,
        architecture=architecture,
        classes=classes,
        input_shape=input_shape,
        mean=mean,
        std=std,
        score=score,
        options=options,
        device=device,
    )
