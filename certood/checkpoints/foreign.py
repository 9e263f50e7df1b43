"""Somebody else's weights: a detector of a file and of what the user says that it holds."""

from collections.abc import Mapping
from pathlib import Path

import torch

from certood.checkpoints.weights import load_weights, read_weights
from certood.detector import Detector
from certood.models import build_model
from certood.scores import Energy, Score


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
    `net`, by the rules for names of `certood.models.foreign_weights`. Raises CheckpointError where the file needs code
    execution to be read, is damaged, or does not fit the architecture.
    """
    path = Path(path)
    names = classes if isinstance(classes, tuple) else tuple(str(index) for index in range(classes))
    model = build_model(
        architecture, num_classes=len(names), input_shape=input_shape, mean=mean, std=std, options=options
    )
    load_weights(model, read_weights(path), path)
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
