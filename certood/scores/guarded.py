"""The score of a guarded detector: a certified guard's score, and a bounded share of the big network's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from certood.errors import CannotCertify, CertoodError
from certood.rounding import float32_below
from certood.scores.base import Score
from certood.scores.conditions import LogitCondition
from certood.scores.protocol import GradientBox, Interval, Logits, ScoreRows, Side


@dataclass(frozen=True)
class Guarded(Score):
    """S = G/σ + α·q(E) of outputs (N, K + 1): the classifier's logits, and after them the one output f of its guard.

    G = −f is the guard's score, `sigma` σ its standard deviation on validation images. E is the classifier's own score, the
    one that `base` names, and q(E) = sigmoid((E − centre)/width) lies in [0, 1]. So whatever an attack makes of the classifier,
    G/σ ≤ S ≤ G/σ + α: bounds of the guard alone certify S, and the classifier need not be bounded (compare ProoD: Meinke et
    al., NeurIPS 2022, arXiv 2106.04260, which adds probabilities in place of scores). Raises CertoodError unless `alpha` ≥ 0,
    `sigma` and `width` > 0.
    """

    base: str = "energy"
    alpha: float = 1.0
    sigma: float = 1.0
    centre: float = 0.0
    width: float = 1.0

    name = "guarded"
    needs_guard: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.sigma > 0 and self.width > 0):
            raise CertoodError(
                f"expected alpha >= 0, sigma > 0 and width > 0, got {self.alpha}, {self.sigma} and {self.width}"
            )
        if self.base_score.needs_guard:
            raise CertoodError(f"expected the score of a classifier as base, got {self.base!r}")

    @property
    def label(self) -> str:
        """Name and α: the other constants are those of the detector, from which `score_by_name` takes them."""
        alpha = f"{self.alpha:g}"
        return f"{self.name}:alpha={alpha if float(alpha) == self.alpha else repr(self.alpha)}"

    @cached_property
    def base_score(self) -> Score:
        """E, of the classifier's logits."""
        from certood.scores.registry import score_by_name  # noqa: PLC0415 (the registry holds this score as well)

        return score_by_name(self.base)

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of outputs (N, K + 1)."""
        return self.combined(logits[..., -1], self.base_score(logits[..., :-1]))

    def combined(self, output: Tensor, base: Tensor) -> Tensor:
        """S of the guard's output f and the classifier's score E, of any one shape."""
        return self.alpha * self.squashed(base) - output / self.sigma

    def squashed(self, base: Tensor) -> Tensor:
        """q(E), in [0, 1] and rising with E."""
        return torch.sigmoid((base - self.centre) / self.width)

    def on(self, classes: int, outputs: int) -> Score:
        """The same, where the classifier's own score reads the first `classes` of its `outputs`; the guard's follows these."""
        return OfOutputs(self, self.base_score.on(classes, outputs))


@dataclass(frozen=True)
class OfOutputs(Score):
    """A guarded score of a classifier whose own score is `base`, a function of all of its outputs."""

    guarded: Guarded
    base: Score

    needs_guard: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name of the score."""
        return self.guarded.name

    @property
    def label(self) -> str:
        """The label of the score."""
        return self.guarded.label

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,) of outputs (N, K + 1)."""
        return self.guarded.combined(logits[..., -1], self.base(logits[..., :-1]))

    def on(self, classes: int, outputs: int) -> Score:
        """The same of a network with other outputs."""
        return self.guarded.on(classes, outputs)

    def class_scores(self, logits: Tensor) -> Tensor | None:
        """S with the score of a single class in place of E, which is at most that."""
        found = self.base.class_scores(logits[..., :-1])
        return None if found is None else self.guarded.combined(logits[..., -1:], found)

    def gradient_box(self, logits: Logits) -> GradientBox:
        """Raises CannotCertify: the bounds of a guarded score are those of `part`."""
        raise CannotCertify(
            "the bounds of a guarded score are those of a part of the network; see Detector.bounded_part"
        )

    def part(self, network: nn.Module, *, whole: bool) -> tuple[nn.Module, Score]:
        """The guard, or with `whole` both networks; see `Score.part`. Raises CertoodError for another network."""
        base, guard = (getattr(network, name, None) for name in ("base", "guard"))
        if not isinstance(base, nn.Module) or not isinstance(guard, nn.Module):
            raise CertoodError(f"expected a network with a base and a guard, got {type(network).__name__}")
        alpha, sigma = self.guarded.alpha, self.guarded.sigma
        if whole:
            return _GuardAndSquashed(base, guard, self), GuardAndSquashed(alpha, sigma)
        return guard, GuardAlone(alpha, sigma)


@dataclass(frozen=True)
class GuardAlone(Score):
    """What is known of S from the guard's output f (N, 1) alone: it lies in −f/σ + [0, α]. Of its gradient nothing is known."""

    alpha: float
    sigma: float

    name = "guarded"
    exact: ClassVar[bool] = False

    def __call__(self, logits: Tensor) -> Tensor:
        """The least values (N,)."""
        return -logits[..., 0] / self.sigma

    def enclosure(self, logits: Tensor) -> Interval:
        """The least and the largest values (N,)."""
        least = self(logits)
        return Interval(least, least + self.alpha)

    def condition(self, logits: Sequence[float], threshold: float, *, accepted: bool) -> LogitCondition:
        """f ≥ σ·(α − γ), or f < −σ·γ."""
        sigma, alpha, gamma = map(Fraction, (self.sigma, self.alpha, threshold))
        if accepted:
            return LogitCondition(
                ((1.0,),), (float32_below(sigma * (gamma - alpha)),), "f ≥ σ·(α − γ), f the guard's output"
            )
        return LogitCondition(((-1.0,),), (float32_below(-sigma * gamma),), "f < −σ·γ, f the guard's output")

    def rows(self, logits: Logits, side: Side) -> ScoreRows:
        """−f/σ from below, −f/σ + α from above."""
        constant = 0.0 if side == "lower" else self.alpha
        return ScoreRows(
            torch.full_like(logits.centre[:, None, None, :1], -1 / self.sigma),
            torch.full_like(logits.centre[:, None, :1], constant),
        )


@dataclass(frozen=True)
class GuardAndSquashed(Score):
    """S = −f/σ + α·q of two outputs (N, 2), the guard's f and the squashed score q in [0, 1] of a classifier."""

    alpha: float
    sigma: float

    name = "guarded"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (N,)."""
        return self.alpha * logits[..., 1] - logits[..., 0] / self.sigma

    def rows(self, logits: Logits, side: Side) -> ScoreRows:
        """S itself, or what bounds it with q at its end: 0 from below, 1 from above."""
        count = len(logits.centre)
        rows = logits.centre.new_tensor([[-1 / self.sigma, self.alpha], [-1 / self.sigma, 0.0]])
        constants = logits.centre.new_tensor([0.0, 0.0 if side == "lower" else self.alpha])
        return ScoreRows(rows.expand(count, 1, 2, 2), constants.expand(count, 1, 2))

    def gradient_box(self, logits: Logits) -> GradientBox:
        """∂S/∂(f, q) = (−1/σ, α)."""
        slopes = torch.full_like(logits.centre, -1 / self.sigma)
        slopes[:, 1] = self.alpha
        return GradientBox(slopes, slopes, self.alpha - 1 / self.sigma)

    def lipschitz(self, outputs: int) -> float:
        """1/σ + α."""
        return 1 / self.sigma + self.alpha


class _GuardAndSquashed(nn.Module):
    """The guard's output and the squashed score of the classifier (N, 2), as one network."""

    def __init__(self, base: nn.Module, guard: nn.Module, score: OfOutputs) -> None:
        super().__init__()
        self.base, self.guard, self.score = base, guard, score

    def forward(self, images: Tensor) -> Tensor:
        """Both outputs (N, 2) of images (N, C, H, W) in [0, 1]."""
        # With an axis more the score of one image is no scalar, of which linear bounds are not made.
        squashed = self.score.guarded.squashed(self.score.base(self.base(images)[:, None]))
        return torch.cat([self.guard(images), squashed], dim=1)


def fitted(score: Score, alpha: float, guard: Tensor, base: Tensor, quantiles: tuple[float, float]) -> Guarded:
    """A guarded score with the constants of validation images: the guard's scores G (N,), and the classifier's E (N,).

    σ is the standard deviation of G. q is 1/2 where E is its upper of the two `quantiles`, and 1 % at the lower one, so that
    it vanishes on most in-distribution images. Constants are rounded to six digits, as they are named in texts. Raises
    CertoodError where G or E is constant.
    """
    low, high = torch.quantile(base.double(), torch.tensor(quantiles, dtype=torch.float64)).tolist()
    width, sigma = (high - low) / math.log(99), float(guard.double().std())
    if not (width > 0 and sigma > 0):
        raise CertoodError(
            f"the scores of the validation images do not vary (standard deviation of the guard's {sigma:g}, quantiles of "
            f"the classifier's {low:g} and {high:g}): nothing can be detected with them"
        )
    sigma, centre, width = (float(f"{value:.6g}") for value in (sigma, high, width))
    return Guarded(score.label, alpha, sigma, centre, width)
