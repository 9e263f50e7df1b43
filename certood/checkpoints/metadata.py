"""What a checkpoint of certood says about its weights: checked value by value before anything is built."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from certood import __version__
from certood.data.splits import Split
from certood.detector import Detector
from certood.errors import CheckpointError
from certood.models.guarded import GuardDescription
from certood.scores import GUARDED_SCORES, Score, score_of_description

SCHEMA_VERSION = 1
# Images of this many values, and options of this size, are far beyond any network that is certified.
MOST_VALUES = 2**27
LARGEST_OPTION = 10_000

Finite = Annotated[float, Field(allow_inf_nan=False)]
Bounded = Field(ge=-LARGEST_OPTION, le=LARGEST_OPTION, allow_inf_nan=False)
Option = bool | Annotated[int, Field(ge=-LARGEST_OPTION, le=LARGEST_OPTION)] | Annotated[float, Bounded] | str
Side = Annotated[int, Field(ge=1, le=2**20)]


class GuardMetadata(BaseModel):
    """What a checkpoint says of a guard; it shares the classifier's image shape."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    architecture: str
    options: dict[str, Option]
    mean: tuple[Finite, ...]
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]

    def known(self) -> GuardDescription:
        """The description of the guard."""
        return GuardDescription(self.architecture, self.mean, self.std, self.options)


class Metadata(BaseModel):
    """The JSON metadata of a checkpoint; types are strict, numbers finite, unknown keys are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    version: str = __version__
    architecture: str
    options: dict[str, Option]
    input_shape: tuple[Side, Side, Side]
    classes: tuple[str, ...] = Field(min_length=1)
    mean: tuple[Finite, ...]
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    absent_class: bool
    score: dict[str, bool | Finite | str]
    threshold: Finite | None
    tpr: float = Field(gt=0, le=1)
    split: dict[str, Any] | None = None
    guard: GuardMetadata | None = None

    @model_validator(mode="after")
    def _sizes_make_sense(self) -> "Metadata":
        if self.schema_version > SCHEMA_VERSION:
            raise ValueError(
                f"schema version {self.schema_version} is of a newer certood ({self.version}); this one reads {SCHEMA_VERSION}"
            )
        if math.prod(self.input_shape) > MOST_VALUES:
            raise ValueError(f"images of shape {self.input_shape} have more than {MOST_VALUES:,} values")
        for part in (self, self.guard) if self.guard is not None else (self,):
            if not len(part.mean) == len(part.std) == self.input_shape[0]:
                raise ValueError(f"{self.input_shape[0]} channels, but mean {part.mean} and std {part.std}")
        if self.score.get("name") in GUARDED_SCORES.names() and self.guard is None:
            raise ValueError(f"score {self.score['name']!r} reads a guard, and there is none")
        return self

    @property
    def outputs(self) -> int:
        """The number of outputs of the network."""
        return len(self.classes) + self.absent_class

    def known_score(self) -> Score:
        """The score with its parameters; raises CertoodError where it, or a parameter, is unknown or makes no sense."""
        return score_of_description(self.score)

    def known_split(self) -> Split | None:
        """Which images were held out, where it is recorded; raises DataError where the record is damaged."""
        return None if self.split is None else Split.from_plain(self.split)


def metadata_of(detector: Detector) -> Metadata:
    """What is to be written about a detector; raises CheckpointError where it holds what a checkpoint cannot."""
    try:
        return Metadata(
            architecture=detector.architecture,
            options=dict(detector.options),
            input_shape=detector.input_shape,
            classes=detector.classes,
            mean=detector.mean,
            std=detector.std,
            absent_class=detector.absent_class,
            score=detector.score.description,
            threshold=detector.threshold,
            tpr=detector.tpr,
            split=None if detector.split is None else detector.split.to_plain(),
            guard=_guard_metadata(detector.guard),
        )
    except ValidationError as error:
        raise CheckpointError(f"this detector cannot be stored: {explained(error)}") from error


def _guard_metadata(guard: GuardDescription | None) -> GuardMetadata | None:
    if guard is None:
        return None
    return GuardMetadata(architecture=guard.architecture, options=dict(guard.options), mean=guard.mean, std=guard.std)


def explained(error: ValidationError) -> str:
    """The first few problems in one line."""
    parts = [f"{'.'.join(map(str, item['loc'])) or 'metadata'}: {item['msg']}" for item in error.errors()]
    return "; ".join(dict.fromkeys(parts[:3]))
