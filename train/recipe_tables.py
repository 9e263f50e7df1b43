"""The tables of a recipe: their keys, defaults, ranges and meanings."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from certood.errors import CertoodError
from certood.train.certified import CERTIFIED_TERMS, CertifiedTerm
from certood.train.certified.base import Side
from certood.train.certified.ramp import Ramp
from certood.train.objectives import OBJECTIVES, Objective
from certood.train.optimisers import OPTIMISERS, Optimiser
from certood.train.samplers import SAMPLERS, Sampler
from certood.train.schedules import SCHEDULES, Schedule
from certood.train.sections import AUTO, FamilySection, Section
from certood.train.trackers import TRACKERS


class RunSection(Section):
    """Where and how reproducibly a recipe runs."""

    seed: int = Field(0, ge=0, description="Everything random in a run derives from it.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    devices: int = Field(1, ge=1, description="Processes on this machine; torchrun's own count wins.")
    nodes: int = Field(1, ge=1, description="Machines; torchrun's own count wins.")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true",
        description="Lightning Fabric's name of the arithmetic; auto is bf16-mixed where the device is fast at it, else 32-true.",
    )
    trackers: tuple[str, ...] = Field(
        (),
        description="Who is told the recipe, every epoch and the evaluation, beside training.csv, which is always written: a "
        "name or a list of names.",
        json_schema_extra={"items": {"enum": list(TRACKERS.names())}},
    )

    @model_validator(mode="before")
    @classmethod
    def _older_recipes_have_a_key_of_tensorboard(cls, values: object) -> object:
        if not isinstance(values, Mapping) or "tensorboard" not in values:
            return values
        kept = {key: value for key, value in values.items() if key != "tensorboard"}
        return {"trackers": ["tensorboard"] if values["tensorboard"] is True else [], **kept}

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        return (() if value == "" else (value,)) if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _trackers_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                TRACKERS.find(name)
            except CertoodError as error:
                raise ValueError(str(error)) from error
        if len(set(value)) < len(value):
            raise ValueError("a tracker is named twice")
        return value


class AuxiliarySection(Section):
    """One set of auxiliary outliers."""

    set: str = Field(min_length=1, description="Its name.")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Its share of the candidates is this, over the sum of all weights."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_name_has_weight_one(cls, value: object) -> object:
        return {"set": value} if isinstance(value, str) else value


class DataSection(Section):
    """The image sets: in-distribution, auxiliary outliers, and OOD sets for the evaluation."""

    id: str = Field(description="In-distribution set.")
    id_test: str | None = Field(None, description="Its test images, where they are a set of their own.")
    auxiliary: tuple[AuxiliarySection, ...] = Field(
        (),
        description="Auxiliary outliers, required by every objective but cross-entropy: a name, or a list of names and of "
        "tables {set = NAME, weight = W}.",
    )
    ood: tuple[str, ...] = Field((), description="Test OOD sets.")
    allow_shared: tuple[str, ...] = Field(
        (), description="Names of sets that may share pictures with sets of another use; an error otherwise."
    )
    validation: float = Field(
        0.1, gt=0, allow_inf_nan=False, description="Share (< 1) or number (≥ 1) of training images held out for γ."
    )
    validation_auxiliary: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Share (< 1) or number (≥ 1) of auxiliary outliers held out, on which a certified training is watched; "
        "if absent 5 % with a table [certified], else none.",
    )
    split_seed: int = Field(
        0, ge=0, description="Of the division into training, validation and test; independent of run.seed."
    )
    root: Path = Field(
        Path("data"), description="Folder of downloaded sets; relative npz: and folder: paths start here."
    )
    size: int | None = Field(None, ge=4, description="Resize images to size×size pixels.")
    crop_padding: int = Field(0, ge=0, description="Random crop after padding by this many pixels.")
    flip: bool = Field(False, description="Random horizontal flip.")

    @field_validator("id_test", "size", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("auxiliary", "ood", "allow_shared", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        if value is None or value == "":
            return ()
        return (value,) if isinstance(value, str | Mapping | AuxiliarySection) else value

    @field_validator("auxiliary")
    @classmethod
    def _no_set_twice(cls, value: tuple[AuxiliarySection, ...]) -> tuple[AuxiliarySection, ...]:
        names = [item.set for item in value]
        if len(set(names)) < len(names):
            raise ValueError("a set is named twice; give it one weight")
        return value


class ModelSection(Section):
    """The network."""

    architecture: str = Field("small-cnn", description="A built-in name, torchvision:NAME, or module:function.")
    options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Arguments of the architecture."
    )
    initialisation: Literal["default", "certified"] = Field(
        "default",
        description="Of the weights: the architecture's, or N(0, sqrt(2π)/fan_in), with which intervals stay small.",
    )
    fixed_statistics: bool = Field(
        False, description="Batch normalisation keeps the statistics of training.init, as certified training needs."
    )
    mean: tuple[float, ...] | None = Field(
        None, description="Normalisation per channel; measured on the ID set if absent."
    )
    std: tuple[float, ...] | None = Field(
        None, description="Normalisation per channel; measured on the ID set if absent."
    )


class ObjectiveSection(FamilySection):
    """The outlier term λ_S·L_S; an objective's parameters are further keys."""

    table: ClassVar = "objective"
    families: ClassVar = {"name": OBJECTIVES}
    may_be_auto: ClassVar = frozenset({"margin_in", "margin_out"})

    name: str = Field("cross-entropy", description="Which outlier term is added to cross-entropy.")

    @property
    def objective(self) -> Objective:
        """The objective with its parameters."""
        made: Objective = self.member()
        return made


class GradientSection(Section):
    """The gradient term λ_∇·L_∇, per sample and in pixel units."""

    weight: float | Literal["auto"] = Field(
        0.0,
        description='λ_∇, at least 0; zero runs no extra pass, and "auto" gives the gradient term 0.06 of the parameter '
        "gradient of the rest of the loss, at training.init.",
        json_schema_extra={"anyOf": [{"type": "number", "minimum": 0}, {"const": AUTO}]},
    )
    mode: Literal["exact", "finite-difference"] = Field(
        "exact", description="Double backward, or a finite difference: for smooth networks without one."
    )
    step: float = Field(
        0.01, gt=0, allow_inf_nan=False, description="h of the finite difference, an l2 distance in pixels."
    )
    every: int = Field(
        1,
        ge=1,
        description="k: each k-th step has the gradient term, at k times its weight; the others are energy steps.",
    )

    @field_validator("weight", mode="plain")
    @classmethod
    def _number_or_auto(cls, value: object) -> object:
        if value == AUTO:
            return AUTO
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise ValueError("expected a number greater than or equal to 0, or 'auto'")
        return number

    @property
    def acts(self) -> bool:
        """Whether there is a gradient term."""
        return self.weight == AUTO or self.number > 0

    @property
    def number(self) -> float:
        """λ_∇, where it is not left to the starting network."""
        assert not isinstance(self.weight, str), "gradient.weight is settled before it is used"
        return self.weight


class SamplerSection(FamilySection):
    """Which outliers of the candidate pool enter the step; a sampler's parameters are further keys."""

    table: ClassVar = "sampler"
    families: ClassVar = {"name": SAMPLERS}

    name: str = Field("random", description="The sampler.")
    candidates: int = Field(6, ge=1, description="Candidates per ID image of the batch.")
    outliers: int = Field(1, ge=1, description="Outliers per ID image; `cluster` picks up to two per ID image.")

    @property
    def sampler(self) -> Sampler:
        """The sampler with its parameters."""
        made: Sampler = self.member()
        return made


class OptimiserSection(FamilySection):
    """Optimiser and learning-rate schedule; the parameters of both are further keys."""

    table: ClassVar = "optimiser"
    families: ClassVar = {"name": OPTIMISERS, "schedule": SCHEDULES}

    name: str = Field("sgd", description="The optimiser.")
    schedule: str = Field("cosine", description="How the learning rate changes.")
    warmup: int = Field(0, ge=0, description="Steps in which the learning rate rises linearly to its value.")
    clip: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Largest l2 norm of a step's gradient, times gradient.every in steps with that term; not clipped if absent.",
    )

    @field_validator("clip", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @property
    def optimiser(self) -> Optimiser:
        """The optimiser with its parameters."""
        made: Optimiser = self.member()
        return made

    @property
    def learning_rates(self) -> Schedule:
        """The schedule with its parameters."""
        made: Schedule = self.member("schedule")
        return made


class CertifiedSection(FamilySection):
    """Certified training: bounds of the score over balls enter the loss; a term's parameters are further keys."""

    table: ClassVar = "certified"
    families: ClassVar = {"term": CERTIFIED_TERMS}

    term: str = Field("score", description="How bounds enter the loss.")
    side: Side = Field("outliers", description="Whose images are bounded: outliers', or those of both sides.")
    eps: float = Field(gt=0, allow_inf_nan=False, description="Radius of the balls when the ramp is over, in pixels.")
    norm: Literal["inf", "2", "1"] = Field("inf", description="Norm of the balls; 2 and 1 need linear bounds.")
    method: Literal["interval", "crown-ibp"] = Field("interval", description="How logits are bounded.")
    quantile: float = Field(
        1.0, gt=0, le=1, description="Share of a batch's outliers, of largest lower bound, whose bounds are used."
    )
    start: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Epochs before the radius grows; 5 % of training.epochs if absent."
    )
    ramp: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Epochs in which it grows; 50 % of training.epochs if absent."
    )

    @field_validator("norm", mode="before")
    @classmethod
    def _number_is_text(cls, value: object) -> object:
        return f"{value:g}" if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _bounds_are_known(self) -> "CertifiedSection":
        if self.norm == "inf" and self.eps > 1:
            raise ValueError(
                f"eps is in pixels of [0, 1]: expected at most 1, got {self.eps:g}; 8-bit radii are divided by 255"
            )
        if self.norm != "inf" and self.method == "interval":
            raise ValueError(
                f"intervals see the box around a ball, whatever its norm: norm {self.norm} needs method = 'crown-ibp'"
            )
        if self.norm != "inf" and self.certified_term.attack_steps:
            raise ValueError(f"the attack of term {self.term!r} takes norm inf, got {self.norm}")
        return self

    @property
    def certified_term(self) -> CertifiedTerm:
        """The term with its parameters."""
        made: CertifiedTerm = self.member("term")
        return made

    def schedule(self, epochs: int, steps: int) -> Ramp:
        """ε by step in a training of `epochs` epochs of `steps` steps."""
        start, length = (
            share * epochs if given is None else given for given, share in ((self.start, 0.05), (self.ramp, 0.5))
        )
        return Ramp(self.eps, start, length, steps)


class TrainingSection(Section):
    """Length and batches."""

    epochs: int = Field(20, ge=1, description="Passes over the ID training images.")
    batch_size: int = Field(64, ge=1, description="ID images a step, over all processes.")
    steps_per_epoch: int | None = Field(None, ge=1, description="Shorter epochs: this many steps each.")
    init: Path | None = Field(
        None, description="Run or checkpoint that training starts from, or a file of foreign weights; empty for none."
    )

    @field_validator("init", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class GuardSection(Section):
    """The detector that a guard is trained for, and how both are joined: S = G/σ + α·q(E)."""

    of: Path | None = Field(
        None, description="Run, checkpoint or foreign weights of the detector that is guarded (--guard-of)."
    )
    alpha: float = Field(
        2.0,
        ge=0,
        allow_inf_nan=False,
        description="α, the most that the detector's own score adds, in standard deviations of G.",
    )
    low: float = Field(0.8, ge=0, lt=1, description="Quantile of E on ID validation images at which q is 1 %.")
    high: float = Field(0.95, gt=0, le=1, description="Quantile of E on ID validation images at which q is 1/2.")
    architecture: str | None = Field(
        None,
        description="Of foreign weights, or the user's own code: a name, torchvision:NAME, timm:NAME, module:function.",
    )
    classes: int | None = Field(None, ge=1, description="Number of classes of foreign weights.")
    input_shape: tuple[int, int, int] | None = Field(None, description="(C, H, W) of foreign weights.")
    mean: tuple[float, ...] | None = Field(None, description="Normalisation of foreign weights, a number a channel.")
    std: tuple[float, ...] | None = Field(None, description="Normalisation of foreign weights, a number a channel.")

    @field_validator("of", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _quantiles_are_ordered(self) -> "GuardSection":
        if self.low >= self.high:
            raise ValueError(f"expected low < high, got {self.low:g} and {self.high:g}")
        return self
