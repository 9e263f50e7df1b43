"""The weights of a file under the names of a network here."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from certood.models.classifier import Classifier
from certood.models.wrapped import WrappedClassifier

WRAPPERS = ("module.", "_orig_mod.")
COUNTER = "num_batches_tracked"


def renamed(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """These weights (name to tensor) under the names of `model`, by these rules and no others.

    1. A prefix `module.` (DataParallel) or `_orig_mod.` (torch.compile) that every name has is taken off, repeatedly.
    2. For a wrapped network (`torchvision:`, `module:function`), names that are not of our own file get the prefix `inner.`.
    3. Where the file has no normalisation, that of `model` stays (what was given as mean and std).
    4. A missing `num_batches_tracked` is 0: older files lack it, and eval mode does not read it.

    What is then missing, unexpected or of another shape is for the caller to refuse.
    """
    found = dict(weights)
    while wrapper := next((w for w in WRAPPERS if found and all(name.startswith(w) for name in found)), None):
        found = {name.removeprefix(wrapper): value for name, value in found.items()}
    own = model.state_dict()
    normalisation = ("normalise.mean", "normalise.std")
    if isinstance(model, Classifier) and not any(name in found for name in normalisation):
        if isinstance(model, WrappedClassifier):
            found = {f"inner.{name}": value for name, value in found.items()}
        found |= {name: own[name] for name in normalisation}
    counters = {name: torch.zeros_like(value) for name, value in own.items() if name.rpartition(".")[2] == COUNTER}
    return {**counters, **found}
