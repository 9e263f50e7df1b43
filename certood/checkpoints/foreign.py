"""Somebody else's weights: a detector of a file and of what the user says that it holds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from certood.checkpoints.weights import load_weights, read_weights
from certood.detector import Detector
from certood.errors import CheckpointError
from certood.models import build_model
from certood.models.classifier import Classifier
from certood.scores import Energy, Score

# Of the fourth decimal, and what float32 adds.
HALF_A_DIGIT = 5.01e-5


def load_foreign(
    path: Path | str,
    *,
    architecture: str,
    classes: int | tuple[str, ...],
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    score: Score | None = None,
    options: Mapping[str, bool | int | float | str] | None = None,
    device: torch.device | str = "cpu",
) -> Detector:
    """Somebody else's weights in a named architecture, without a threshold; the score is energy unless given.

    `mean` and `std` are its normalisation, one number a channel; without them it is that in the file, or none.

    Reads safetensors and state dicts that `torch.load(weights_only=True)` accepts, bare or under `state_dict`, `model` or
    `net`, by the rules for names of `certood.models.foreign_weights`. Raises CheckpointError where the file needs code
    execution to be read, is damaged, does not fit the architecture, or holds another normalisation than was given.
    """
    path = Path(path)
    channels = input_shape[0]
    asked = mean or (0.0,) * channels, std or (1.0,) * channels
    names = classes if isinstance(classes, tuple) else tuple(str(index) for index in range(classes))
    model = build_model(
        architecture, num_classes=len(names), input_shape=input_shape, mean=asked[0], std=asked[1], options=options
    )
    load_weights(model, read_weights(path), path)
    require_normalisation(model, mean, std, path)
    return Detector(
        model=model.to(device).eval(),
        score=score or Energy(),
        threshold=None,
        architecture=architecture,
        input_shape=input_shape,
        classes=names,
        mean=model.normalisation[0],
        std=model.normalisation[1],
        options=dict(options or {}),
    )


def require_normalisation(
    model: Classifier, mean: Sequence[float] | None, std: Sequence[float] | None, path: Path | str
) -> None:
    """Raise CheckpointError where a network of a file has another normalisation than was given, up to its fourth decimal.

    Published ones are rounded to that (CIFAR-10's mean 125.3/255 is given as 0.4914); the network keeps the file's own.
    """
    for name, given, held in zip(("mean", "std"), (mean, std), model.normalisation, strict=True):
        if given is not None and not (
            len(given) == len(held)
            and all(
                math.isclose(one, its, rel_tol=1e-5, abs_tol=HALF_A_DIGIT) for one, its in zip(given, held, strict=True)
            )
        ):
            raise CheckpointError(
                f"{path} holds a normalisation of its own with {name} {list(held)}, not {list(given)}: give that, or none"
            )
