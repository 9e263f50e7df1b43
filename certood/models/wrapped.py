"""Networks from elsewhere: torchvision's, and the user's own factory; the last linear layer becomes the head."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certood.errors import ArchitectureError
from certood.models.classifier import Classifier, Interface


class WrappedClassifier(Classifier):
    """Somebody else's network behind a normalisation; it ends in a linear layer, which is taken out as the head."""

    def __init__(self, interface: Interface, inner: nn.Module, name: str) -> None:
        super().__init__(interface)
        linear = [(path, part) for path, part in inner.named_modules() if isinstance(part, nn.Linear)]
        if not linear:
            raise ArchitectureError(f"{name} has no linear layer to serve as the head; give a network that ends in one")
        path, last = linear[-1]
        if last.out_features != interface.num_classes:
            raise ArchitectureError(
                f"{name}: the last linear layer {path or '(itself)'} has {last.out_features} outputs, "
                f"expected {interface.num_classes}"
            )
        self.inner = inner
        self._name = name
        self._head_path = path

    def features(self, images: Tensor) -> Tensor:
        """What enters the last linear layer (N, F), for images (N, C, H, W) in [0, 1].

        Raises ArchitectureError where the logits are not what that layer gives.
        """
        caught: list[tuple[Tensor, Tensor]] = []
        hook = self._last().register_forward_hook(lambda _, inputs, output: caught.append((inputs[0], output)))
        try:
            logits = self.inner(self.normalise(images))
        finally:
            hook.remove()
        if len(caught) != 1 or not (caught[0][1] is logits or torch.equal(caught[0][1], logits)):
            raise ArchitectureError(
                f"{self._name}: its logits are not the output of its last linear layer, {self._head_path or '(itself)'}, so that "
                "it has no penultimate features; give a network that ends in it, or a Classifier with features and head"
            )
        return caught[0][0]

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, F)."""
        logits: Tensor = self._last()(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.inner(self.normalise(images))
        return logits

    def _last(self) -> nn.Module:
        return self.inner.get_submodule(self._head_path)


def torchvision_classifier(interface: Interface, name: str, **options: Any) -> WrappedClassifier:
    """One of torchvision's classification networks, without pretrained weights."""
    import torchvision  # noqa: PLC0415 (slow to import)

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ArchitectureError(f"torchvision has no classifier {name!r}; it has: {', '.join(known)}")
    if interface.input_shape[0] != 3:
        raise ArchitectureError(f"torchvision:{name} takes 3 channels, the images have {interface.input_shape[0]}")
    plain = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    inner = torchvision.models.get_model(name, weights=None, num_classes=interface.num_classes, **plain, **options)
    return WrappedClassifier(interface, inner, f"torchvision:{name}")


def user_classifier(interface: Interface, reference: str, options: Mapping[str, Any]) -> Classifier:
    """What the user's `module:function(num_classes, **options)` returns; normalisation is put before it.

    The current folder is searched first. A network that is a Classifier already is taken as it is.
    """
    module_name, _, function_name = reference.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything when it is imported
        raise ArchitectureError(
            f"cannot import {function_name!r} of {module_name!r} ({type(error).__name__}: {error})"
        ) from error
    finally:
        sys.path.remove(folder)
    try:
        inner = factory(num_classes=interface.num_classes, **options)
    except (Exception, SystemExit) as error:
        raise ArchitectureError(
            f"{reference}(num_classes={interface.num_classes}, …) failed ({type(error).__name__}: {error})"
        ) from error
    if isinstance(inner, Classifier):
        return inner
    if not isinstance(inner, nn.Module):
        raise ArchitectureError(f"{reference} returned {type(inner).__name__}, expected a torch.nn.Module")
    return WrappedClassifier(interface, inner, reference)
