"""certood's own checkpoints: weights in safetensors with JSON metadata, never pickle."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from certood import __version__
from certood.checkpoints.onnx_file import ONNX_ARCHITECTURE
from certood.checkpoints.weights import load_weights, read_safetensors
from certood.data.splits import Split
from certood.detector import Detector
from certood.errors import CheckpointError, DataError
from certood.files import replacing
from certood.models import build_model
from certood.runs.directory import RunDirectory
from certood.scores import Score, score_by_name

METADATA_KEY = "certood"


def save_checkpoint(detector: Detector, path: Path) -> None:
    """Write a detector as safetensors with JSON metadata, atomically; raises CheckpointError where it cannot.

    The network of an ONNX file cannot be written: a checkpoint names its architecture, which is the file itself.
    """
    if detector.architecture == ONNX_ARCHITECTURE:
        raise CheckpointError(f"{path}: the network of an ONNX file stays in that file; a checkpoint cannot hold it")
    metadata = {
        "version": __version__,
        "architecture": detector.architecture,
        "options": dict(detector.options),
        "input_shape": list(detector.input_shape),
        "classes": list(detector.classes),
        "mean": list(detector.mean),
        "std": list(detector.std),
        "absent_class": detector.absent_class,
        "score": asdict(detector.score),  # type: ignore[call-overload]
        "threshold": detector.threshold,
        "tpr": detector.tpr,
        "split": None if detector.split is None else detector.split.to_plain(),
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in detector.model.state_dict().items()}
    try:
        with replacing(path) as temporary:
            save_file(weights, temporary, {METADATA_KEY: json.dumps(metadata)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Detector:
    """The detector in a checkpoint of certood, or in the run directory that holds one, in eval mode.

    Raises CheckpointError where the file is missing, truncated, or foreign (see `load_foreign`).
    """
    path = _checkpoint_path(path)
    weights, metadata = read_safetensors(path)
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} was not written by certood: say what it holds with --architecture, --mean and --std"
        )
    try:
        stored = json.loads(metadata[METADATA_KEY])
        score_fields = dict(stored["score"])
        score: Score = score_by_name(score_fields.pop("name"))
        score = type(score)(**score_fields)
        detector = Detector(
            model=build_model(
                stored["architecture"],
                num_classes=len(stored["classes"]) + stored["absent_class"],
                input_shape=tuple(stored["input_shape"]),
                mean=stored["mean"],
                std=stored["std"],
                options=stored["options"],
            ),
            score=score,
            threshold=stored["threshold"],
            architecture=stored["architecture"],
            input_shape=tuple(stored["input_shape"]),
            classes=tuple(stored["classes"]),
            mean=tuple(stored["mean"]),
            std=tuple(stored["std"]),
            options=stored["options"],
            absent_class=stored["absent_class"],
            tpr=stored["tpr"],
            split=None if stored.get("split") is None else Split.from_plain(stored["split"]),
        )
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise CheckpointError(f"{path} has damaged metadata ({type(error).__name__}: {error})") from error
    load_weights(detector.model, weights, path)
    detector.model.to(device).eval()
    return detector


def _checkpoint_path(path: Path | str) -> Path:
    path = Path(path)
    if path.is_dir():
        run = RunDirectory(path)
        if not run.checkpoint.is_file():
            raise CheckpointError(
                f"{path} has no {run.checkpoint.name}: its training has not ended; continue with --resume"
            )
        path = run.checkpoint
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path.absolute()}; expected a run directory or a .safetensors file")
    return path
