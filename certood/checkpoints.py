"""Checkpoints: weights in safetensors with JSON metadata, never pickle; and the detector that they hold."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from certood import __version__
from certood.data.splits import Split
from certood.detector import Detector
from certood.errors import CheckpointError, DataError
from certood.files import replacing
from certood.models import build_model
from certood.models.foreign_weights import renamed
from certood.scores import Energy, Score, score_by_name

CHECKPOINT_FILE = "checkpoint.safetensors"
METADATA_KEY = "certood"
# The newest set of ONNX operators that onnx2torch knows all of.
ONNX_OPERATORS = 17


def save_checkpoint(detector: Detector, path: Path) -> None:
    """Write a detector as safetensors with JSON metadata, atomically; raises CheckpointError where it cannot."""
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
    """The detector of a run directory or checkpoint, or, with `architecture`, of somebody else's weights.

    Foreign weights need `classes` (names or their number) and `input_shape` (C, H, W) as well; `mean` and `std` are their
    normalisation, a number a channel (default: none); they come without γ, see `Detector.calibrated`. Raises CheckpointError
    where the file is missing, damaged, or does not fit (see `load_foreign`).
    """
    if architecture is None:
        given = {"classes": classes, "input_shape": input_shape, "mean": mean, "std": std, "score": score}
        needless = [name for name, value in given.items() if value is not None]
        if needless:
            raise CheckpointError(f"{', '.join(needless)} describe foreign weights, which need `architecture` too")
        return load_checkpoint(path, device)
    if classes is None or input_shape is None:
        raise CheckpointError("foreign weights need `classes` and `input_shape` beside `architecture`")
    return load_foreign(
        path,
        architecture=architecture,
        classes=classes,
        input_shape=input_shape,
        mean=mean or (0.0,) * input_shape[0],
        std=std or (1.0,) * input_shape[0],
        score=score,
        options=options,
        device=device,
    )


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Detector:
    """The detector in a checkpoint of certood, or in the run directory that holds one, in eval mode.

    Raises CheckpointError where the file is missing, truncated, or foreign (see `load_foreign`).
    """
    path = _checkpoint_path(path)
    weights, metadata = _read_safetensors(path)
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
    _load_weights(detector.model, weights, path)
    detector.model.to(device).eval()
    return detector


def load_foreign(
    path: Path | str,
    *,
    architecture: str,
    classes: int | tuple[str, ...],
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    score: Score | None = None,
    options: Mapping[str, bool | int | float | str] | None = None,
    device: torch.device | str = "cpu",
) -> Detector:
    """Somebody else's weights in a named architecture, without a threshold; the score is energy unless given.

    Reads safetensors and state dicts that `torch.load(weights_only=True)` accepts, bare or under `state_dict`, `model` or
    `net`, by the rules for names of `certood.models.foreign_weights`; and ONNX files (extra `onnx`), for which
    `architecture` is "onnx". Raises CheckpointError where the file needs code execution to be read, is damaged, or does
    not fit the architecture.
    """
    path = Path(path)
    names = classes if isinstance(classes, tuple) else tuple(str(index) for index in range(classes))
    if path.suffix == ".onnx":
        model: nn.Module = _onnx_model(path, len(names), input_shape, mean, std)
    else:
        model = build_model(
            architecture, num_classes=len(names), input_shape=input_shape, mean=mean, std=std, options=options
        )
        _load_weights(model, _foreign_weights(path), path)
    return Detector(
        model=model.to(device).eval(),
        score=score or Energy(),
        threshold=None,
        architecture=architecture,
        input_shape=input_shape,
        classes=names,
        mean=tuple(mean),
        std=tuple(std),
        options=dict(options or {}),
    )


def _checkpoint_path(path: Path | str) -> Path:
    path = Path(path)
    if path.is_dir():
        if not (path / CHECKPOINT_FILE).is_file():
            raise CheckpointError(
                f"{path} has no {CHECKPOINT_FILE}: its training has not ended; continue with --resume"
            )
        path /= CHECKPOINT_FILE
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path.absolute()}; expected a run directory or a .safetensors file")
    return path


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); it may be truncated") from error


def _foreign_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path.absolute()}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be read without running code that it carries, which certood refuses; save the state dict "
            "alone: torch.save(model.state_dict(), path)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a readable PyTorch file ({error}); it may be truncated") from error
    for key in ("state_dict", "model", "net"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict (names to tensors), but {type(loaded).__name__}")
    return {str(name): value for name, value in loaded.items()}


def _load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: weights are infinite or not a number: {', '.join(broken[:5])}")
    own = model.state_dict()
    weights = renamed(weights, model)
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems = [
        f"{kind}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}; {'; '.join(problems)}")
    model.load_state_dict(weights)


def _onnx_model(
    path: Path, outputs: int, shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> nn.Module:
    try:
        import onnx2torch  # noqa: F401, PLC0415 (optional)
    except ImportError as error:
        raise CheckpointError("ONNX files need the extra: pip install 'certood[onnx]'") from error
    from certood.models.classifier import Normalise  # noqa: PLC0415

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
