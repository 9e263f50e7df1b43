"""Certified radii: how far an image may be moved before its decision could change, by direct bounds of the score.

An accepted image stays accepted on B_p(x, r) where the upper bound of S is at most γ, a rejected one stays rejected where the
lower bound exceeds γ. The largest such r is searched by regula falsi on the bound's slack, which few passes pin down.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.bounds import (
    Analysis,
    Engine,
    LpBall,
    OuterBoxes,
    default_memory,
    engine_by_name,
    logits_of,
)
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question

Slack = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Direct(Evidence):
    """Radii certified by direct bounds of the score over the ball."""

    quantities = (
        Quantity("radius_direct", of="radius", side="lower", kind="certified", label="radius from bounds of the score"),
    )

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The radii (N,); the search starts from the gradient radius."""
        radii, right = torch.zeros_like(known.scores), known.right
        if len(right):
            own = known.accepted[right]
            # Bounds of a falling score are looser; a start below the radius costs less than one above it.
            guess = torch.where(own, 0.7, 0.35) * known["radius_gradient"][right]
            radii[right] = certified_radii(
                question,
                images[right],
                own,
                method=self.settings.method,
                tolerance=self.settings.tolerance,
                guess=guess.clamp(1e-6, largest_radius(question.norm, images[0].numel())),
                iterations=self.settings.iterations,
                engine=self.settings.engine,
                dtype=self.settings.precision,
            )
        return {"radius_direct": radii}


def largest_radius(norm: float, pixels: int) -> float:
    """The radius from which on a ball is the whole pixel range: 1, √d or d."""
    return {math.inf: 1.0, 2.0: math.sqrt(pixels), 1.0: float(pixels)}[float(norm)]


def certified_radii(
    question: Question,
    images: Tensor,
    accepted: Tensor,
    *,
    method: str = "alpha-crown",
    tolerance: float = 0.01,
    guess: Tensor | None = None,
    iterations: int = 20,
    max_passes: int = 16,
    max_memory: float | None = None,
    engine: str = "certood",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Certified radii (N,) in pixels of images (N, C, H, W) for their own decisions, `accepted` (N,).

    Each is within `tolerance`, relatively, of the largest that the method certifies, unless `max_passes` ends the search. `guess`
    is where the search starts, e.g. the gradient radius. α-CROWN starts from what CROWN certifies. `engine` is one of ENGINES;
    without linear functions of the image there is no closed form of the radius.
    """
    if method == "alpha-crown":
        crown = certified_radii(
            question,
            images,
            accepted,
            method="crown",
            tolerance=0.05,
            guess=guess,
            max_memory=max_memory,
            engine=engine,
            dtype=dtype,
        )
        guess = (1.1 * crown).clamp_min(1e-6)
    budget, bounding = max_memory or default_memory(), engine_by_name(engine)
    settings = _Bounding(bounding, method, iterations, budget, dtype)
    most = max(1, int(budget // max(1, OuterBoxes.memory(question.graph))))
    limit = largest_radius(question.norm, images[0].numel())
    found = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for decision in (True, False):
        for members in (accepted == decision).nonzero().flatten().split(most):
            if not len(members):
                continue
            slack = _Slack(question, images[members], decision, settings)
            start = question.point_margins(images[members], decision)
            begin = torch.full_like(start, 0.01) if guess is None else guess[members].to(torch.float64)
            found[members] = _largest(slack, start, begin, limit, tolerance, max_passes)
    return found


@dataclass(frozen=True)
class _Bounding:
    """How balls are bounded: the engine, and what `certified_radii` is told of it."""

    engine: Engine
    method: str
    iterations: int
    max_memory: float
    dtype: torch.dtype


class _Slack:
    """Margins that are certified over balls around images (N, C, H, W) of one decision, and radii that follow in closed form.

    What is known of the network over a ball whose margin is not positive is kept: the radius lies within.
    """

    def __init__(self, question: Question, images: Tensor, accepted: bool, bounding: _Bounding) -> None:
        self.question, self.images, self.accepted, self.bounding = question, images, accepted, bounding
        self.outer = OuterBoxes.unbounded(question.graph, len(images), images.device)

    def __call__(self, chosen: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Margins and radii of some images (M,), by their numbers, over balls of these radii (M,)."""
        own, graph = self.bounding, self.question.graph
        whole = LpBall(self.images[chosen], eps, self.question.norm)
        at_once = own.engine.images_at_once(graph, own.max_memory, own.dtype, own.method) or len(whole)
        parts = zip(whole.split(at_once), chosen.split(at_once), strict=True)
        margins, closed = zip(*(self._of_balls(ball, numbers) for ball, numbers in parts), strict=True)
        return torch.cat(margins), torch.cat(closed)

    def _of_balls(self, ball: LpBall, numbers: Tensor) -> tuple[Tensor, Tensor]:
        own = self.bounding
        analysis = own.engine.analyse(
            self.question.graph,
            ball,
            own.method,
            iterations=own.iterations,
            max_memory=own.max_memory,
            dtype=own.dtype,
            outer=self.outer.chosen(numbers),
        )
        logits = logits_of(analysis)
        margins = self.question.margin_bounds(logits, self.accepted)
        lost = (~(margins > 0)).nonzero().flatten()
        # The closed form counts where the ball itself is not certified.
        if not len(lost) or not isinstance(analysis, Analysis):
            return margins, torch.zeros_like(ball.eps)
        self.outer.put(numbers[lost], OuterBoxes.of(analysis.graph, analysis.boxes).chosen(lost))
        return margins, self.question.linear_radius(analysis, logits, self.accepted)


def _largest(slack: Slack, start: Tensor, guess: Tensor, limit: float, tolerance: float, max_passes: int) -> Tensor:
    """The largest ε (N,) with positive slack; images whose search has ended leave the batch.

    Slack at 0 is `start`. Once a radius is bracketed, inverse interpolation through the three latest probes predicts where
    the slack vanishes, and the next probe lies far enough from it that two hits end the search; a bracket that two probes
    hardly made smaller is halved. What the closed form certifies moves the lower end, but has no slack to interpolate.
    """
    low, high = torch.zeros_like(start), torch.full_like(start, limit)
    known = torch.zeros_like(start, dtype=torch.bool)
    scale = start.clamp_min(1e-300)
    # The last three probes, the newest first. Slack falls ever faster: asinh brings what is far below 0 nearer.
    places = torch.zeros(3, len(start), dtype=torch.float64, device=start.device)
    values = torch.stack([torch.full_like(start, math.asinh(1.0))] * 3)
    eps, width_before = guess.clamp(1e-9, limit), torch.full_like(start, math.inf)
    active = (start > 0).nonzero().flatten()
    for count in range(max_passes):
        if not len(active):
            break
        value, closed = slack(active, eps[active])
        good = value > 0
        kept, lost = active[good], active[~good]
        low[kept] = eps[kept]
        high[lost], known[lost] = eps[lost], True
        low[lost] = torch.maximum(low[lost], closed[~good])
        places[:, active] = torch.stack([eps[active], *places[:2, active]])
        values[:, active] = torch.stack([torch.asinh(value / scale[active]), *values[:2, active]])
        middle = torch.where(low > 0, (low * high).sqrt(), high / 4)
        predicted = _vanishing(places, values, low, high)
        aim = torch.where(predicted.isfinite(), predicted, middle)
        # Next to the prediction, on the side whose end is further away.
        shift = torch.where(high / aim > aim / low.clamp_min(1e-300), 1 + 0.45 * tolerance, 1 - 0.45 * tolerance)
        width = torch.where(low > 0, high / low, math.inf).log()
        slow = (width > 0.75 * width_before) & (count % 2 == 1)
        width_before = width if count % 2 else width_before
        within = torch.where(slow, middle, aim * shift)
        within = torch.maximum(torch.minimum(within, high / (1 + tolerance / 3)), low * (1 + tolerance / 3))
        # Nothing above is known yet: the radius lies before the end of the line through the slack at 0 and here.
        line = low + 0.7 * (_line_end(low, values[0]) - low)
        further = line if count == 0 else torch.where(predicted.isfinite(), predicted * (1 + 0.45 * tolerance), 2 * low)
        beyond = torch.maximum(torch.minimum(further, 4 * low), low * (1 + tolerance / 3))
        eps = torch.where(known, within, beyond).clamp_max(limit)
        done = torch.where(known, high <= low * (1 + tolerance), low >= limit) | (known & (high < 1e-8))
        active = active[~done[active]]
    return low


def _line_end(low: Tensor, value: Tensor) -> Tensor:
    """Where the line through the slack at 0 and a positive slack at `low` vanishes."""
    left = torch.sinh(value)
    return low / (1 - left).clamp_min(1e-3)


def _vanishing(places: Tensor, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where values (3, N) at places (3, N) vanish (N,): inverse quadratic interpolation, else lines from the newest point.

    Only what lies between `low` and `high` is taken; not a number where nothing does.
    """
    (a, b, c), (u, v, w) = places, values
    found = a * v * w / ((u - v) * (u - w)) + b * u * w / ((v - u) * (v - w)) + c * u * v / ((w - u) * (w - v))
    for line in (a - u * (b - a) / (v - u), a - u * (c - a) / (w - u)):
        found = torch.where((found > low) & (found < high), found, line)
    return torch.where((found > low) & (found < high), found, math.nan)
