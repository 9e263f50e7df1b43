"""Networks by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from certood.errors import ArchitectureError
from certood.models.cifar_resnet import CifarResNet
from certood.models.classifier import Classifier, Interface
from certood.models.densenet import DenseNetBC
from certood.models.guarded import GuardDescription
from certood.models.lipschitz import LipschitzCNN
from certood.models.rectified import RECTIFIED, rectified
from certood.models.resnet import ResNet18
from certood.models.small import SmallCNN, SmallMLP, StridedCNN
from certood.models.timm_networks import timm_classifier
from certood.models.wide_resnet import WideResNet
from certood.models.wrapped import torchvision_classifier, user_classifier
from certood.suggestions import did_you_mean

ARCHITECTURES: dict[str, Callable[..., Classifier]] = {
    "small-cnn": SmallCNN,
    "small-mlp": SmallMLP,
    "strided-cnn": StridedCNN,
    "resnet18": ResNet18,
    "resnet20": partial(CifarResNet, depth=20),
    "resnet32": partial(CifarResNet, depth=32),
    "resnet44": partial(CifarResNet, depth=44),
    "resnet56": partial(CifarResNet, depth=56),
    "lipschitz-cnn": LipschitzCNN,
    "wrn-40-2": WideResNet,
    "densenet-bc-100-12": DenseNetBC,
    "densenet121": lambda interface, **options: torchvision_classifier(interface, "densenet121", **options),
}


def _rectified(interface: Interface, name: str, ceiling: float, **options: Any) -> Classifier:
    """The network of that name, its features cut off at a ceiling."""
    return rectified(_make(name, interface, options), name, ceiling)


# Networks that are named KIND:NAME: those of libraries, and changed ones.
LIBRARIES: dict[str, Callable[..., Classifier]] = {
    "torchvision": torchvision_classifier,
    "timm": timm_classifier,
    RECTIFIED: _rectified,
}
# Options of these libraries that would fetch or open files.
FETCHING = ("weights", "checkpoint_path", "cache_dir")


def runs_user_code(architecture: str) -> bool:
    """Whether building this architecture imports and calls a user's `module:function`."""
    kind, colon, rest = architecture.partition(":")
    return runs_user_code(rest) if kind == RECTIFIED else bool(colon) and kind not in LIBRARIES


def build_model(
    architecture: str,
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    options: Mapping[str, bool | int | float | str] | None = None,
) -> Classifier:
    """A network with fresh weights: a built-in name, `torchvision:NAME`, `timm:NAME`, or the user's `module:function`.

    `input_shape` is (C, H, W) in pixels; `num_classes` counts the outputs. Raises ArchitectureError where the name or an
    option is unknown, or the images do not suit the network.
    """
    interface = Interface(num_classes, input_shape, tuple(mean), tuple(std))
    if len(mean) != input_shape[0] or len(std) != input_shape[0] or min(std) <= 0:
        raise ArchitectureError(
            f"mean and std need one value per channel, std above 0: {input_shape[0]} channels, mean {tuple(mean)}, "
            f"std {tuple(std)}"
        )
    chosen = dict(options or {})
    model = _make(architecture, interface, chosen)
    try:
        with torch.no_grad():
            outputs = model.eval()(torch.zeros(1, *input_shape))
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise ArchitectureError(
            f"{architecture} does not take images of shape {input_shape} (C, H, W): {error}; use larger images or another network"
        ) from error
    if outputs.shape != (1, num_classes):
        raise ArchitectureError(
            f"{architecture} gives {tuple(outputs.shape)} for one image, expected (1, {num_classes})"
        )
    return model.train()


def require_guard(architecture: str) -> None:
    """Raise ArchitectureError for a guard of the user's own code: opening its detector's checkpoint would run it unnamed."""
    if runs_user_code(architecture):
        raise ArchitectureError(
            f"a guard is a built-in network, torchvision:NAME or timm:NAME, so that its detector's checkpoint can be opened "
            f"without running other code; found {architecture}"
        )


def build_guard(guard: GuardDescription, input_shape: tuple[int, int, int]) -> Classifier:
    """A guard with fresh weights, for images (C, H, W): a network with one output.

    Raises ArchitectureError as `build_model` and `require_guard` do.
    """
    require_guard(guard.architecture)
    return build_model(
        guard.architecture,
        num_classes=1,
        input_shape=input_shape,
        mean=guard.mean,
        std=guard.std,
        options=guard.options,
    )


def _make(architecture: str, interface: Interface, options: dict[str, Any]) -> Classifier:
    kind, colon, rest = architecture.partition(":")
    fetching = sorted(key for key in options if key.startswith("pretrained") or key in FETCHING)
    if fetching and not runs_user_code(architecture):
        raise ArchitectureError(f"{architecture}: weights are never fetched; leave out {', '.join(fetching)}")
    try:
        if colon and kind in LIBRARIES:
            return LIBRARIES[kind](interface, rest, **options)
        if colon:
            return user_classifier(interface, architecture, options)
        if architecture in ARCHITECTURES:
            _require_whole(architecture, options)
            return ARCHITECTURES[architecture](interface, **options)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError, LookupError) as error:
        raise ArchitectureError(f"{architecture} does not take these options {options}: {error}") from error
    hint = did_you_mean(architecture, ARCHITECTURES)
    known = f"{', '.join(ARCHITECTURES)}, torchvision:NAME, timm:NAME, module:function"
    raise ArchitectureError(f"unknown architecture {architecture!r}{hint} Known: {known}")


def _require_whole(architecture: str, options: Mapping[str, Any]) -> None:
    """Raise ArchitectureError where a size of a built-in network is not a whole number from 1 on."""
    for name, parameter in inspect.signature(ARCHITECTURES[architecture]).parameters.items():
        value = options.get(name, 1)
        if parameter.annotation is int and (type(value) is not int or value < 1):
            raise ArchitectureError(f"{architecture}: {name} is a whole number from 1 on, found {value!r}")
