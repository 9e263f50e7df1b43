"""Quantities: what can be known of an image, and which inequalities between them must hold."""

import math
from dataclasses import dataclass
from typing import Literal

Subject = Literal["radius", "lipschitz", "score"]
Side = Literal["lower", "upper"]
Kind = Literal["certified", "found", "estimate", "probabilistic"]

UNITS = {"radius": "pixels", "lipschitz": "score per pixel", "score": "units of the score"}
FORMATS = {"radius": ".4f", "lipschitz": ".4g", "score": ".4g"}
# The cell of an image of which a quantity is not known.
EMPTY = math.nan


@dataclass(frozen=True)
class Quantity:
    """A number about an image, declared once by the evidence that computes it.

    `of` is the unknown true value that it is about: the radius up to which the decision is kept, the Lipschitz constant of the
    score, or the score of the images of a ball. `side` says on which side of it the number lies: a certified `lower` bound is
    never above it, a found `lower` one (e.g. a gradient norm, for the Lipschitz constant) is attained, so that no certified
    upper bound may be below it. A found score lies in the ball; for it the side says nothing. `kind` is

    - `certified`: proved, for every image of the ball;
    - `found`: attained at a point that the network itself has evaluated;
    - `estimate`: neither, never compared with anything;
    - `probabilistic`: proved with a confidence, about a smoothed detector.

    With `per_eps` there is a value for every radius ε, columns NAME@ε; without it the value belongs to the image itself, or to
    all images of the pixel range. `first` names a further column: the value at the first ε. `label` is what people read in
    running text, `head` above a column of the report (no column without it), and `lowest` whether there the lowest (True), the
    highest (False) or no (None) value is the best.
    """

    name: str
    of: Subject
    side: Side
    kind: Kind
    per_eps: bool = False
    first: str = ""
    label: str = ""
    head: str = ""
    lowest: bool | None = None

    @property
    def title(self) -> str:
        """Its name in certification.json (median_TITLE), in requirements and in the report."""
        return self.first or self.name

    @property
    def unit(self) -> str:
        """The unit of its values."""
        return UNITS[self.of]

    @property
    def format(self) -> str:
        """How its values are written in tables."""
        return FORMATS[self.of]

    @property
    def zero_where_wrong(self) -> bool:
        """Whether an image whose decision is wrong has the value 0: radii have, estimates of radii say nothing there."""
        return self.of == "radius" and self.kind != "estimate"


def column(name: str, radius: float) -> str:
    """NAME@ε, with as many digits as tell ε exactly."""
    short = f"{radius:g}"
    return f"{name}@{short if float(short) == radius else repr(radius)}"
