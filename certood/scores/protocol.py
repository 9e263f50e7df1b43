"""What the bounds of a score are written against: boxes of logits, bounds of rows of them, rows that bound a score.

The core defines these and knows nothing of networks: whatever bounds rows of a network's logits over a set of inputs fulfils
`LogitBounds`, in any floating-point precision, on any device, with or without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Side = Literal["lower", "upper"]
Found = TypeVar("Found")

# Above so many logits the K² differences of all pairs are read off the box instead of being bounded row by row.
PAIRS = 32


class Interval(NamedTuple):
    """Lower and upper bounds, elementwise, of one shape."""

    lower: Tensor
    upper: Tensor


class GradientBox(NamedTuple):
    """{c : lower ≤ c ≤ upper, Σc = total}, (N, K): what is known of ∂S/∂z over a set of logits."""

    lower: Tensor
    upper: Tensor
    total: float


class ScoreRows(NamedTuple):
    """Linear functions of the logits that bound a score, on the scale on which its bounds are linear (`Score.to_row_scale`).

    From below the score is at least min_g max_m (rows·z + constants), from above at most max_g min_m: every one of the G
    groups has to hold, by any of its M alternatives. `rows` is (N, G, M, K), `constants` (N, G, M). Where the alternatives
    are members of a family, `tangents` is the family.
    """

    rows: Tensor
    constants: Tensor
    tangents: Tangents | None = None


class LogitBounds(Protocol):
    """Bounds of rows of the logits over one set of inputs for every image."""

    @property
    def centre(self) -> Tensor:
        """The logits (N, K) at a point of the set."""
        ...

    def rows(self, coefficients: Tensor) -> Interval:
        """Bounds (N, M) of rows (N, M, K) of the logits."""
        ...

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K) of the logits."""
        ...


@dataclass(frozen=True)
class Tangents:
    """Linear functions below τ·logsumexp(z/τ) − o_g·z, or with the sign −1 above its negative, one for every w of the simplex.

    rows = sign·(w − o_g), constants = sign·τ·H(w) + shift, because τ·LSE(z/τ) ≥ w·z + τ·H(w). `offsets` o is (G, K), `start`
    (N, K) the log-weights that touch at the centre; with τ = 0 it is the maximum in place of logsumexp. `ignored` outputs
    after the K logits do not enter.
    """

    sign: int
    offsets: Tensor
    start: Tensor
    temperature: float = 1.0
    shift: float = 0.0
    ignored: int = 0

    def member(self, group: int | Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (D, K) and constants (D,) for weights softmax(parameters), parameters (D, K), of one group or of groups (D,)."""
        log_weights = parameters.log_softmax(1)
        weights = log_weights.exp()
        constants = self.shift - self.sign * self.temperature * (weights * log_weights).sum(1)
        return F.pad(self.sign * (weights - self.offsets[group]), (0, self.ignored)), constants

    def touching(self) -> ScoreRows:
        """The members that touch at the centre: one alternative in every group."""
        found = [self.member(group, self.start) for group in range(len(self.offsets))]
        rows, constants = (torch.stack(part, 1)[:, :, None] for part in zip(*found, strict=True))
        return ScoreRows(rows, constants, self)


class Logits:
    """The logits that a score reads: the values at the centre, bounds of any rows, and what is often needed, kept."""

    def __init__(self, source: LogitBounds) -> None:
        self._source = source
        self._views: dict[tuple[int, float], Logits] = {}
        self._kept: dict[Callable[[Logits], Any], Any] = {}

    @cached_property
    def centre(self) -> Tensor:
        """The logits (N, K) at a point of the set."""
        return self._source.centre

    @property
    def columns(self) -> int:
        """K."""
        return self.centre.shape[1]

    def rows(self, coefficients: Tensor) -> Interval:
        """Bounds (N, M) of rows (N, M, K)."""
        return self._source.rows(coefficients)

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K)."""
        return self._source.lower_rows(coefficients)

    @cached_property
    def units(self) -> Tensor:
        """The unit vectors (K, K)."""
        return torch.eye(self.columns, dtype=self.centre.dtype, device=self.centre.device)

    @cached_property
    def box(self) -> Interval:
        """Bounds (N, K) of the logits, each by its own row."""
        return self.rows(self.units.expand(len(self.centre), -1, -1))

    @cached_property
    def top(self) -> Tensor:
        """The largest logit at the centre, (N,)."""
        return self.centre.argmax(1)

    @cached_property
    def top_differences(self) -> Interval:
        """Bounds (N, K) of z_j − z_top."""
        return self.differences(self.top)

    def differences(self, index: Tensor) -> Interval:
        """Bounds (N, K) of z_j − z_k for one k an image, `index` (N,)."""
        if "pairs" in self.__dict__ and self.columns <= PAIRS:
            image = torch.arange(len(index), device=index.device)
            return Interval(self.pairs.lower[image, index], self.pairs.upper[image, index])
        return self.rows(self.units[None] - self.units[index][:, None])

    @cached_property
    def pairs(self) -> Interval:
        """Bounds (N, K, K) of z_j − z_k at [n, k, j]: row by row, of many logits from the box."""
        if self.columns > PAIRS:
            return box_differences(*self.box)
        maps = (self.units[None, :, :] - self.units[:, None, :]).flatten(0, 1)
        lower, upper = self.rows(maps.expand(len(self.centre), -1, -1))
        return Interval(*(part.unflatten(1, (self.columns, self.columns)) for part in (lower, upper)))

    def kept(self, compute: Callable[[Logits], Found]) -> Found:
        """What a function makes of these logits, computed once."""
        if compute not in self._kept:
            self._kept[compute] = compute(self)
        found: Found = self._kept[compute]
        return found

    def view(self, columns: int | None = None, factor: float = 1.0) -> Logits:
        """The first so many logits, multiplied by a factor."""
        columns = columns or self.columns
        if columns == self.columns and factor == 1:
            return self
        return self._views.setdefault((columns, factor), Logits(_View(self, columns, factor)))


@dataclass(frozen=True)
class _View:
    inner: Logits
    columns: int
    factor: float

    @property
    def centre(self) -> Tensor:
        return self.inner.centre[:, : self.columns] * self.factor

    def rows(self, coefficients: Tensor) -> Interval:
        return self.inner.rows(self._whole(coefficients))

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        return self.inner.lower_rows(self._whole(coefficients))

    def _whole(self, coefficients: Tensor) -> Tensor:
        return F.pad(coefficients * self.factor, (0, self.inner.columns - self.columns))


@dataclass(frozen=True)
class BoxBounds:
    """Logits of which a box [lower, upper] (N, K) is all that is known: the rows are exact on it."""

    lower: Tensor
    upper: Tensor

    @property
    def centre(self) -> Tensor:
        """The middle of the box."""
        return (self.lower + self.upper) / 2

    def rows(self, coefficients: Tensor) -> Interval:
        """Bounds (N, M) of rows (N, M, K)."""
        return Interval(self.lower_rows(coefficients), -self.lower_rows(-coefficients))

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K)."""
        least = coefficients.clamp_min(0) @ self.lower[..., None] + coefficients.clamp_max(0) @ self.upper[..., None]
        return least[..., 0]


def box_differences(lower: Tensor, upper: Tensor) -> Interval:
    """Bounds (N, K, K) of z_j − z_k at [n, k, j] from a box (N, K): zero on the diagonal."""
    same = torch.eye(lower.shape[1], dtype=torch.bool, device=lower.device)
    return Interval(
        (lower[:, None, :] - upper[:, :, None]).masked_fill(same, 0),
        (upper[:, None, :] - lower[:, :, None]).masked_fill(same, 0),
    )


def rows_lower(logits: Logits, found: ScoreRows) -> Tensor:
    """min_g max_m of the lower bounds (N,) of rows; minus infinity where nothing is known."""
    flat = logits.lower_rows(found.rows.flatten(1, 2)).view_as(found.constants) + found.constants
    return torch.nan_to_num(flat, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(2).amin(1)


def rows_upper(logits: Logits, found: ScoreRows) -> Tensor:
    """max_g min_m of the upper bounds (N,) of rows; infinity where nothing is known."""
    flat = found.constants - logits.lower_rows(-found.rows.flatten(1, 2)).view_as(found.constants)
    return torch.nan_to_num(flat, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(2).amax(1)


def ignoring(found: ScoreRows, outputs: int) -> ScoreRows:
    """The same rows of a network with `outputs` outputs, of which those after the K logits do not enter."""
    missing = outputs - found.rows.shape[-1]
    tangents = None if found.tangents is None else replace(found.tangents, ignored=missing)
    return ScoreRows(F.pad(found.rows, (0, missing)), found.constants, tangents)
