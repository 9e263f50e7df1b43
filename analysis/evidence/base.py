"""The interface of all evidence, and what is known of a batch of images when it is asked."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from certood.analysis.evidence.quantities import Kind, Quantity, Side, Subject
from certood.analysis.question import Question
from certood.analysis.settings import Settings
from certood.scores import Interval


@dataclass
class Known:
    """What is known of a batch of N images: their scores and decisions, and what earlier evidence has found.

    `kind` is "id" or "ood", `indices` are the numbers of the images in their set, by which random numbers are drawn. `scores`,
    `margins` |γ − S| and `accepted` are (N,); `copied` are the least and the largest scores (N,) by the captured graph, None
    where nothing was captured. `quantities` are those that were computed so far, and `values` are theirs, (N,), or (E, N) for
    every radius ε of the settings; `point` is where scores lie in exact arithmetic. `methods` names what computed the bounds,
    also where another method was asked for. Evidence that takes long tells `advance` how many images it is done with.
    """

    kind: str
    indices: Sequence[int]
    scores: Tensor
    margins: Tensor
    accepted: Tensor
    copied: Interval | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    quantities: list[Quantity] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    advance: Callable[[float], None] = lambda _: None
    point: Interval | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def point_of(self, question: Question, images: Tensor) -> Interval:
        """`Question.point_bounds` of the images of the batch, computed once."""
        if self.point is None:
            self.point = question.point_bounds(images)
        return self.point

    def certain_margins(self, question: Question, images: Tensor) -> Tensor:
        """`Question.certain_margins` (N,) of the images of the batch, for their decisions."""
        return question.certain_margins(self.point_of(question, images), self.accepted)

    def every(self, of: Subject, side: Side | None, *kinds: Kind) -> list[Tensor]:
        """The values of all quantities about this, of these kinds and, where one is given, on this side: (N,) or (E, N) each."""
        return [
            self.values[quantity.name]
            for quantity in self.quantities
            if quantity.of == of and quantity.kind in kinds and side in (None, quantity.side)
        ]

    @property
    def correct(self) -> Tensor:
        """Whether each image (N,) is accepted if it is ID, rejected if it is OOD."""
        return self.accepted == (self.kind == "id")

    @property
    def right(self) -> Tensor:
        """The rows of the images that are decided correctly."""
        return self.correct.nonzero().flatten()


class Evidence(ABC):
    """One way to say something of images: the quantities that it computes, and their computation.

    Subclasses declare `quantities` and are registered in `certood.analysis.evidence.registry`. The columns of certificates.csv,
    the medians of certification.json, the names that can be required, the columns of the report and the inequalities that
    are checked for every image follow from the declarations. `smoothed` evidence is about the smoothed detector, and computed in
    place of all other evidence where the method is smoothing.
    """

    quantities: ClassVar[tuple[Quantity, ...]]
    smoothed: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def wanted(self) -> bool:
        """Whether these settings ask for it; what is not computed stays empty."""
        return self.smoothed == self.settings.smoothed

    def check(self, question: Question) -> None:  # noqa: B027 (nothing to do where the settings suffice)
        """Raise CertoodError where the settings ask for this evidence and it says nothing of such a network."""

    @abstractmethod
    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The quantities by name, of float64 images (N, C, H, W) in [0, 1]: (N,) each, (E, N) where there is one for every ε.

        A quantity that is left out stays empty. What is returned beyond the quantities is known to later evidence, and not
        recorded. A radius needs to be right only where the decision is correct: elsewhere it is recorded as 0.
        """
