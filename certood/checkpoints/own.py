"""certood's own checkpoints: weights in safetensors with JSON metadata, never pickle."""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from certood.checkpoints.metadata import Metadata, explained, metadata_of
from certood.checkpoints.onnx_file import ONNX_ARCHITECTURE
from certood.checkpoints.weights import load_weights, read_header, read_safetensors
from certood.detector import Detector
from certood.errors import CertoodError, CheckpointError
from certood.files import replacing
from certood.models import build_model
from certood.models.catalogue import build_guard, runs_user_code
from certood.models.guarded import GuardedNetwork
from certood.runs.directory import RunDirectory
from certood.runs.identity import weights_hash

METADATA_KEY = "certood"


def save_checkpoint(detector: Detector, path: Path) -> None:
    """Write a detector as safetensors with JSON metadata, atomically; raises CheckpointError where it cannot.

    The network of an ONNX file cannot be written: a checkpoint names its architecture, which is the file itself.
    """
    if detector.architecture == ONNX_ARCHITECTURE:
        raise CheckpointError(f"{path}: the network of an ONNX file stays in that file; a checkpoint cannot hold it")
    metadata = metadata_of(detector).model_dump_json()
    # Clones, since safetensors refuses weights that share memory.
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in detector.model.state_dict().items()}
    try:
        with replacing(path) as temporary:
            save_file(weights, temporary, {METADATA_KEY: metadata})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def load_checkpoint(
    path: Path | str, device: torch.device | str = "cpu", *, architecture: str | None = None
) -> Detector:
    """The detector in a checkpoint of certood, or in the run directory that holds one, in eval mode.

    No code that the file names is run: a checkpoint may name built-in, torchvision and timm networks, without downloads; the
    `module:function` of a user's own network must be given as `architecture`, every time. Raises CheckpointError where the file
    is missing, damaged, or foreign (see `load_foreign`).
    """
    path = _checkpoint_path(path)
    metadata = _read_metadata(path)
    if architecture is not None and architecture != metadata.architecture:
        raise CheckpointError(f"{path} holds weights of {metadata.architecture}, not of {architecture}")
    if architecture is None and runs_user_code(metadata.architecture):
        raise CheckpointError(
            f"{path} holds weights of a network of your own code, which certood runs only if you name it: "
            f"add --architecture {metadata.architecture} (load(…, architecture=…))"
        )
    try:
        score, split = metadata.known_score(), metadata.known_split()
    except (CertoodError, TypeError) as error:
        raise CheckpointError(f"{path} has damaged metadata ({error})") from error
    _check_size(path, metadata)
    model = _build(metadata)
    load_weights(model, read_safetensors(path)[0], path)
    return Detector(
        model=model.to(device).eval(),
        score=score,
        threshold=metadata.threshold,
        architecture=metadata.architecture,
        input_shape=metadata.input_shape,
        classes=metadata.classes,
        mean=metadata.mean,
        std=metadata.std,
        options=metadata.options,
        absent_class=metadata.absent_class,
        tpr=metadata.tpr,
        split=split,
        guard=None if metadata.guard is None else metadata.guard.known(),
    )


def stored_identity(path: Path | str) -> dict[str, Any]:
    """What a checkpoint says of its detector's identity, without building the network: all but its structure and source.

    Raises CheckpointError as `load_checkpoint` does for a file that does not read.
    """
    path = _checkpoint_path(path)
    found = _read_metadata(path).model_dump(mode="json", exclude={"schema_version", "version", "split"})
    return found | {"weights": weights_hash(read_safetensors(path)[0])}


def is_own(path: Path | str) -> bool:
    """Whether a path is a run directory or a checkpoint that certood wrote."""
    path = Path(path)
    if path.is_dir():
        return True
    try:
        return METADATA_KEY in read_header(path)[1]
    except CheckpointError:
        return False


def _read_metadata(path: Path) -> Metadata:
    found = read_header(path)[1]
    if METADATA_KEY not in found:
        raise CheckpointError(
            f"{path} was not written by certood: say what it holds with --architecture, --classes, --input-shape, "
            "--mean and --std"
        )
    try:
        return Metadata.model_validate_json(found[METADATA_KEY])
    except ValidationError as error:
        raise CheckpointError(f"{path} has damaged metadata ({explained(error)})") from error


def _build(metadata: Metadata) -> nn.Module:
    classifier = build_model(
        metadata.architecture,
        num_classes=metadata.outputs,
        input_shape=metadata.input_shape,
        mean=metadata.mean,
        std=metadata.std,
        options=metadata.options,
    )
    if metadata.guard is None:
        return classifier
    return GuardedNetwork(classifier, build_guard(metadata.guard.known(), metadata.input_shape))


def _check_size(path: Path, metadata: Metadata) -> None:
    """Compare the sizes that options ask for with those of the weights, before memory is taken for either.

    The network of a user's own code is built but once: the user named it, and it need not be one that has no memory.
    """
    if runs_user_code(metadata.architecture):
        return
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in _build(metadata).state_dict().items()}
    found = read_header(path)[0]
    wrong = sorted(name for name in wanted if name in found and found[name] != wanted[name])
    if wrong:
        listed = ", ".join(f"{name} {found[name]} instead of {wanted[name]}" for name in wrong[:5])
        raise CheckpointError(f"{path} does not fit {metadata.architecture}; of another shape: {listed}")


def _why_none(run: RunDirectory) -> str:
    """Why a folder has no checkpoint."""
    if run.certification_settings.is_file():
        return "it holds a certification alone; name the run, or the file, that was certified"
    if run.recipe.is_file():
        return "its training has not ended; continue with --resume"
    return "it is no run directory"


def _checkpoint_path(path: Path | str) -> Path:
    path = Path(path)
    RunDirectory.of(path).settle()
    if path.is_dir():
        run = RunDirectory(path)
        if not run.checkpoint.is_file():
            raise CheckpointError(f"{path} has no {run.checkpoint.name}: {_why_none(run)}")
        path = run.checkpoint
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path.absolute()}; expected a run directory or a .safetensors file")
    return path
