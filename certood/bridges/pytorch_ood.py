"""pytorch-ood's post-hoc detectors of a network of certood: measured, never certified, but for those that equal our scores.

Kirchheim, Filax, Ortmeier 2022, "PyTorch-OOD: A Library for Out-of-Distribution Detection based on PyTorch".
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from certood.bridges.pytorch_ood_sets import PREFIX
from certood.data.source import ImageSource, to_pixels
from certood.detector import Detector
from certood.errors import CertoodError, DataError
from certood.models.classifier import Classifier
from certood.models.rectified import last_layer
from certood.optional import optional
from certood.scores import MSP, Energy, Entropy, MaxLogit, Score
from certood.suggestions import did_you_mean

BATCH = 128
# Their detectors of logits that equal scores of ours, which have bounds.
EQUAL: Mapping[str, Callable[..., Score | None]] = {
    "EnergyBased": lambda t=1.0: Energy(temperature=float(t)),
    "MaxSoftmax": lambda t=1.0: MSP() if t == 1 else None,
    "MaxLogit": MaxLogit,
    "Entropy": Entropy,
}
# Those of a feature map's places, of which a vector of features has one: nothing would be left of it.
OF_MAPS = frozenset({"RankFeat"})


def equal_score(text: str) -> Score | None:
    """The score of ours that equals the detector `pytorch-ood:NAME[,key=value…]`, or None where there is none.

    Raises CertoodError for parameters that it does not have.
    """
    name, parameters = _parsed(text)
    if name not in EQUAL:
        return None
    try:
        return EQUAL[name](**parameters)
    except (TypeError, ValueError) as error:
        raise CertoodError(f"{text}: {error}") from error


@dataclass
class PostHocDetector:
    """A detector of pytorch-ood, named `pytorch-ood:NAME[,key=value…]`, of the network of a detector of ours.

    It is built from what its constructor asks for: the network (`model`), its penultimate features (`encoder`, `backbone`), its
    last layer (`head`, `w`, `b`), and the number of classes; all else is a parameter in the text, or has a default.
    """

    text: str
    detector: Detector
    device: torch.device | str = "cpu"
    seed: int = 0
    made: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        name, parameters = _parsed(self.text)
        kind = _detector_class(name)
        if self.detector.guard is not None or self.detector.absent_class:
            raise CertoodError(
                f"{self.text}: pytorch-ood's detectors read classes alone, and this network has another output"
            )
        if name in OF_MAPS:
            raise CertoodError(
                f"{self.text}: {name} reads maps of several pixels, and only penultimate features are known here"
            )
        parts = _parts(self.detector)
        signature = inspect.signature(kind.__init__).parameters
        needed = {key: part for key, part in signature.items() if key != "self" and part.kind is not part.VAR_KEYWORD}
        unknown = [key for key in parameters if key not in needed]
        if unknown:
            raise CertoodError(f"{self.text}: {name} has no parameter {unknown[0]!r}; it has {', '.join(needed)}")
        given = {key: parts[key]() for key in needed if key in parts} | parameters
        missing = [
            key for key, value in needed.items() if value.default is inspect.Parameter.empty and key not in given
        ]
        if missing:
            raise CertoodError(
                f"{self.text}: {name} needs {', '.join(missing)}, which a network alone does not give; numbers can be given "
                f"in the name, such as {PREFIX}:{name},{missing[0]}=1, and all else in Python, by pytorch-ood itself"
            )
        self.detector.model.to(self.device).eval()
        self.made = _attempted(self.text, lambda: kind(**given).to(self.device))

    def fit(self, images: ImageSource) -> "PostHocDetector":
        """Fit it on labelled ID training images where it asks for that; raises CertoodError where it fails."""
        if self.made.requires_fit:
            if images.labels is None:
                raise DataError(f"{self.text} is fitted on labelled images, and {images.name} has no labels")
            torch.manual_seed(self.seed)
            loader = _Batches(images, self.device)
            _attempted(f"{self.text} on {images.name}", lambda: self.made.fit(loader))
        return self

    def __call__(self, images: ImageSource) -> Tensor:
        """Scores (N,) in float64 of the images of a set, higher for outliers; raises CertoodError where they are not finite."""
        torch.manual_seed(self.seed)
        parts = [
            _attempted(f"{self.text} on {images.name}", partial(self.made.predict, batch)).detach().double().cpu()
            for batch, _ in _Batches(images, self.device)
        ]
        scores = torch.cat(parts)
        if scores.shape != (len(images),) or not scores.isfinite().all():
            raise CertoodError(
                f"{self.text}: expected a finite score for each of {len(images)} images of {images.name}, found shape "
                f"{tuple(scores.shape)} with {int((~scores.isfinite()).sum())} that are not finite"
            )
        return scores


@dataclass(frozen=True)
class _Batches:
    """Batches (images in [0, 1], labels) of a set in its order, as a DataLoader gives them; without labels these are -1."""

    source: ImageSource
    device: torch.device | str

    def __len__(self) -> int:
        return math.ceil(len(self.source) / BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        labels = self.source.labels
        for part in torch.arange(len(self.source)).split(BATCH):
            known = torch.full((len(part),), -1) if labels is None else labels[part]
            yield to_pixels(self.source.batch(part).to(self.device)), known.to(self.device)


def _parts(detector: Detector) -> dict[str, Callable[[], Any]]:
    """What constructors ask for, by their names of it; each raises ArchitectureError where a network does not have it."""
    network = detector.model

    def layer() -> torch.nn.Linear:
        return last_layer(network, detector.architecture)[1]

    def encoder() -> Callable[[Tensor], Tensor]:
        layer()
        assert isinstance(network, Classifier)
        return network.features

    def backbone() -> Callable[[Tensor], Tensor]:
        """Feature maps of one pixel, for detectors that ask for maps (N, F, H, W)."""
        features = encoder()
        return lambda images: features(images)[:, :, None, None]

    return {
        "model": lambda: network,
        "encoder": encoder,
        "backbone": backbone,
        "head": lambda: _Head(layer()),
        "w": lambda: layer().weight.data,
        "b": lambda: layer().bias.data,
        "num_classes": lambda: len(detector.classes),
    }


class _Head(torch.nn.Linear):
    """The last layer, of features (N, F) or of maps of one pixel (N, F, 1, 1)."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device=layer.weight.device)
        self.load_state_dict(layer.state_dict())

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K)."""
        return super().forward(features.flatten(1))


def _parsed(text: str) -> tuple[str, dict[str, bool | int | float | str]]:
    """The name of a detector and its parameters: numbers and booleans where they read as such."""
    library, _, rest = text.partition(":")
    name, *pairs = rest.split(",")
    if library != PREFIX or not name:
        raise CertoodError(f"expected {PREFIX}:NAME or {PREFIX}:NAME,key=value, found {text!r}")
    found: dict[str, bool | int | float | str] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not key or not equals:
            raise CertoodError(f"{text}: expected key=value after the name, found {pair!r}")
        found[key] = _value(value)
    return name, found


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _detector_class(name: str) -> Any:
    """A class of theirs by name; raises CertoodError that names the nearest."""
    module = _library()
    known = [
        one
        for one in dir(module)
        if inspect.isclass(getattr(module, one)) and hasattr(getattr(module, one), "requires_fit")
    ]
    if name not in known:
        hint = did_you_mean(name, known)
        raise CertoodError(f"pytorch-ood has no detector {name!r}{hint} Known: {', '.join(known)}")
    return getattr(module, name)


def _library() -> ModuleType:
    return optional(
        "pytorch_ood.detector", CertoodError(f"{PREFIX}: needs pytorch-ood: pip install 'certood[{PREFIX}]'")
    )


def _attempted(what: str, call: Callable[[], Any]) -> Any:
    """The result of a call of theirs; whatever it raises is one error that says of what."""
    try:
        return call()
    except Exception as error:
        raise CertoodError(f"{what}: pytorch-ood failed ({type(error).__name__}: {error})") from error
