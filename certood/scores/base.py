"""What a score is: a formula on logits, and all of its bounds; and how it is bound to the outputs that it reads."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.errors import CannotCertify
from certood.scores.conditions import LogitCondition
from certood.scores.mean_value import mean_value_rows
from certood.scores.protocol import (
    BoxBounds,
    GradientBox,
    Interval,
    Logits,
    ScoreRows,
    Side,
    ignoring,
    rows_lower,
    rows_upper,
)


class Score(ABC):
    """A function from logits (N, K) to scores (N,), higher for outliers; a frozen dataclass whose fields are its parameters.

    A subclass has a `name` and a formula. With `gradient_box` as well everything about it is certified, by the mean value
    theorem; `rows`, `upper`, `lower`, `bounds` and `box_bounds` are overridden where more is known. Without it, it is measured
    and never certified. Bounds are differentiable functions of what is known of the logits.
    """

    needs_guard: ClassVar[bool] = False
    """Whether it also reads the output of a guard, which follows those of the classifier."""

    exact: ClassVar[bool] = True
    """Whether it is a function of the outputs that its bounds read. One that is not reads more, of which they hold whatever
    it is: values are enclosed, and nothing is known of its gradient."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in files and on the command line."""

    @abstractmethod
    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, K)."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @property
    def label(self) -> str:
        """The name, and the parameters that are not the default ones: what `score_by_name` reads."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    @property
    def description(self) -> dict[str, Any]:
        """Parameters and name, as a checkpoint records them."""
        return {**self.parameters, "name": self.name}

    def suits(self, classes: int, outputs: int) -> bool:
        """Whether the score makes sense for a network with so many classes and outputs."""
        return classes <= outputs

    def on(self, classes: int, outputs: int) -> "Score":
        """The score as a function of all outputs of a network, of which the first `classes` are classes.

        An output that is no class (the absent class) does not enter: its logit is high for outliers, so that it would make
        an outlier's energy look in-distribution. Raises CertoodError where the network lacks what the score reads.
        """
        return self if classes == outputs else FirstOutputs(self, classes)

    def class_scores(self, logits: Tensor) -> Tensor | None:
        """For each class a score (N, K), at least S, that the class alone gives; None where no single class decides."""
        return None

    def part(self, network: nn.Module, *, whole: bool) -> tuple[nn.Module, "Score"]:
        """What is bounded in place of the score of a network: a part of the network, and a score of that part's outputs whose
        bounds hold for S. By default, and in any case with `whole`, the whole network."""
        return network, self

    def enclosure(self, logits: Tensor) -> Interval:
        """The least and the largest values (N,) that the score may have at these outputs (N, K): one value where it is exact."""
        values = self(logits)
        return Interval(values, values)

    def to_row_scale(self, value: float) -> float:
        """A score on the scale on which `rows` bound it: an increasing function."""
        return value

    def from_row_scale(self, values: Tensor) -> Tensor:
        """The inverse of `to_row_scale`."""
        return values

    def rows(self, logits: Logits, side: Side) -> ScoreRows:
        """Linear functions of the logits that bound the score from one side; by default from the gradient."""
        return mean_value_rows(logits, self(logits.centre), self.gradient_box(logits), side)

    def lower(self, logits: Logits) -> Tensor:
        """Lower bounds (N,), by as little work as is usual."""
        return self.from_row_scale(rows_lower(logits, self.rows(logits, "lower")))

    def upper(self, logits: Logits) -> Tensor:
        """Upper bounds (N,), by as little work as is usual."""
        return self.from_row_scale(rows_upper(logits, self.rows(logits, "upper")))

    def bounds(self, logits: Logits) -> Interval:
        """Lower and upper bounds (N,), as tight as is known."""
        return Interval(self.lower(logits), self.upper(logits))

    def gradient_box(self, logits: Logits) -> GradientBox:
        """Bounds (N, K) of ∂S/∂z and its sum, for every Clarke gradient; raises CannotCertify where none are known."""
        raise CannotCertify(f"score {self.name!r} has no bounds: its class defines no gradient_box")

    def lipschitz(self, outputs: int) -> float:
        """By how much the score changes, at most, where every one of so many logits changes by at most one."""
        return torch.inf

    def condition(self, logits: Sequence[float], threshold: float, *, accepted: bool) -> LogitCondition | None:
        """A condition on the logits that suffices for S ≤ γ where accepted, else for S > γ; None where none is known.

        `logits` (K,) are those at the image; the condition does not depend on bounds of others.
        """
        return None

    def box_bounds(self, lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
        """Bounds (N,) from a box [lower, upper] (N, K) of the logits alone; differentiable.

        `differences` are bounds (N, K, K) of z_j − z_k at [n, k, j], which the scores make use of that know how to.
        """
        return self.bounds(Logits(BoxBounds(lower, upper)))


@dataclass(frozen=True)
class FirstOutputs(Score):
    """A score that reads the first `classes` outputs of a network, as a function of all of them."""

    score: Score
    classes: int

    @property
    def name(self) -> str:
        """The name of the score."""
        return self.score.name

    @property
    def label(self) -> str:
        """The label of the score."""
        return self.score.label

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of logits (N, outputs)."""
        return self.score(logits[..., : self.classes])

    def on(self, classes: int, outputs: int) -> Score:
        """This score for a network with other outputs."""
        return self.score.on(classes, outputs)

    def class_scores(self, logits: Tensor) -> Tensor | None:
        """What the score on the classes gives every class."""
        return self.score.class_scores(logits[..., : self.classes])

    def to_row_scale(self, value: float) -> float:
        """As the score has it."""
        return self.score.to_row_scale(value)

    def from_row_scale(self, values: Tensor) -> Tensor:
        """As the score has it."""
        return self.score.from_row_scale(values)

    def rows(self, logits: Logits, side: Side) -> ScoreRows:
        """Rows with zeros for the outputs that do not enter."""
        return ignoring(self.score.rows(logits.view(self.classes), side), logits.columns)

    def lower(self, logits: Logits) -> Tensor:
        """Lower bounds (N,)."""
        return self.score.lower(logits.view(self.classes))

    def upper(self, logits: Logits) -> Tensor:
        """Upper bounds (N,)."""
        return self.score.upper(logits.view(self.classes))

    def bounds(self, logits: Logits) -> Interval:
        """Lower and upper bounds (N,) of the score on the classes."""
        return self.score.bounds(logits.view(self.classes))

    def gradient_box(self, logits: Logits) -> GradientBox:
        """Bounds with zeros for the outputs that do not enter."""
        found = self.score.gradient_box(logits.view(self.classes))
        missing = (0, logits.columns - self.classes)
        return GradientBox(F.pad(found.lower, missing), F.pad(found.upper, missing), found.total)

    def lipschitz(self, outputs: int) -> float:
        """The constant of the score on the classes."""
        return self.score.lipschitz(self.classes)

    def condition(self, logits: Sequence[float], threshold: float, *, accepted: bool) -> LogitCondition | None:
        """That of the score on the classes, with zeros for the outputs that do not enter."""
        found = self.score.condition(logits[: self.classes], threshold, accepted=accepted)
        missing = (0.0,) * (len(logits) - self.classes)
        return None if found is None else replace(found, rows=tuple(row + missing for row in found.rows))

    def box_bounds(self, lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
        """Bounds (N,) from a box (N, outputs) and differences (N, outputs, outputs)."""
        first = slice(None, self.classes)
        inner = differences and Interval(differences.lower[:, first, first], differences.upper[:, first, first])
        return self.score.box_bounds(lower[:, first], upper[:, first], inner)
