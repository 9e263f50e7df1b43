"""What a result is about: the SHA-256 of everything that makes a detector, and whether two results are about the same one.

A detector is its weights, the structure and the source of its network, its architecture and options, image shape, classes,
normalisation, absent class, score with parameters, guard, and γ. Hashes are computed from bytes whenever they are needed; none
is kept.
"""

import hashlib
import inspect
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certood.detector import Detector
from certood.errors import RunDirectoryError
from certood.models.rectified import RECTIFIED

# Packages whose code is told by their version; of all other code the source is hashed.
RELEASED = frozenset({"certood", "timm", "torch", "torchvision"})
# What the built network says; a checkpoint alone does not.
OF_THE_NETWORK = ("structure", "source")


def detector_identity(detector: Detector) -> dict[str, Any]:
    """What makes a detector, as plain values of JSON; `sha256` is over all others."""
    found = {
        "architecture": detector.architecture,
        "options": dict(detector.options),
        "input_shape": list(detector.input_shape),
        "classes": list(detector.classes),
        "mean": list(detector.mean),
        "std": list(detector.std),
        "absent_class": detector.absent_class,
        "score": detector.score.description,
        "threshold": detector.threshold,
        "tpr": detector.tpr,
        "guard": None if detector.guard is None else asdict(detector.guard),
        "weights": weights_hash(detector.model.state_dict()),
        "structure": _structure_hash(detector.model),
        "source": _source_hash(detector),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain | {"sha256": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two identities disagree on, of what both say."""
    shared = (one.keys() & other.keys()) - {"sha256"}
    return sorted(key for key in shared if one[key] != other[key])


def differences_of_certification(certified: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What a certification was made of that a detector is not; it may be about another score, with a γ of that score."""
    found = differences(certified, identity)
    if certified.get("score") != identity.get("score"):
        return [key for key in found if key not in ("score", "threshold")]
    return found


def certificates_hash(path: Path) -> str:
    """SHA-256 of a certificates.csv; raises RunDirectoryError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RunDirectoryError(f"cannot read {path}: {error.strerror or error}") from error


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {
        "certood": version("certood"),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }


def _structure_hash(model: nn.Module) -> str:
    lines = [
        f"{name} {type(part).__module__}.{type(part).__qualname__} {part.extra_repr()}"
        for name, part in model.named_modules()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _source_hash(detector: Detector) -> str:
    """SHA-256 over the files that define the user's own modules and factory; empty where there are none."""
    modules = {type(part).__module__ for part in detector.model.modules()}
    built = detector.architecture.removeprefix(f"{RECTIFIED}:")
    modules.add(built.partition(":")[0] if ":" in built else "certood")
    files = set()
    for name in modules:
        module = sys.modules.get(name)
        if name.partition(".")[0] in RELEASED or module is None:
            continue
        try:
            found = inspect.getsourcefile(module)
        except TypeError:
            continue
        if found is not None and Path(found).is_file():
            files.add(Path(found))
    parts = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return hashlib.sha256("".join(parts).encode()).hexdigest() if parts else ""
