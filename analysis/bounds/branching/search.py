"""Best-first search: the part with the lowest bound is split next, in batches over all goals, until bounds or time suffice."""

import heapq
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certood.analysis.bounds.branching.functions import Functions
from certood.analysis.bounds.branching.parts import Bounded, PartBounds, Parts
from certood.analysis.bounds.branching.rules import RULES
from certood.analysis.bounds.linear.analysis import Analysis
from certood.analysis.bounds.memory import COPIES
from certood.errors import CertoodError

# An ascent on a part that cannot be split ends where it gained less, relatively.
LEAST_GAIN = 1e-4


@dataclass(frozen=True)
class Effort:
    """How long to search: at most so many `parts` a goal, and no new ones after `seconds` for all goals together.

    So many parts are bounded at once (`batch`) by so many `steps` of ascent each, whole balls by so many `first_steps`. `rule` is
    one of RULES. Raises CertoodError for values that make no sense.
    """

    parts: float = 256
    seconds: float = math.inf
    batch: int = 32
    steps: int = 12
    first_steps: int = 40
    rule: str = "nearest"

    def __post_init__(self) -> None:
        if not (self.parts >= 1 and self.seconds > 0):
            raise CertoodError(f"expected at least one part and a time above 0, got {self.parts} and {self.seconds} s")
        if self.batch < 1 or min(self.steps, self.first_steps) < 0:
            raise CertoodError("expected a batch of at least 1, and no negative number of steps")
        if self.rule not in RULES:
            raise CertoodError(f"unknown branching rule {self.rule!r}; expected one of {', '.join(RULES)}")


@dataclass(order=True)
class _Open:
    """A part that may be split, at a column; at none where it has none left, so that only the ascent can go on."""

    bound: float
    number: int
    part: Parts = field(compare=False)
    column: int | None = field(compare=False)


@dataclass
class _Goal:
    """Open parts of a goal, the lowest bound first, and the lowest bound of those that are not split any more."""

    waiting: list[_Open] = field(default_factory=list)
    closed: float = math.inf
    made: int = 0

    @property
    def bound(self) -> float:
        """The lowest bound of all parts."""
        return min(self.closed, self.waiting[0].bound) if self.waiting else self.closed

    def is_open(self, target: float, parts: float) -> bool:
        """Whether splitting the lowest part may still raise the bound to the target."""
        return bool(self.waiting) and self.made < parts and self.waiting[0].bound <= min(target, self.closed)


def branched_least(
    analysis: Analysis,
    functions: Functions,
    effort: Effort | None = None,
    *,
    target: float = 0.0,
    advance: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """Lower bounds (G,) of the goals of functions over balls; a goal is left once its bound exceeds the target.

    The bound of what is left undecided is the lowest of its parts. `advance` is told which share of the effort is newly spent.
    """
    effort = effort or Effort()
    return _Search(analysis, functions, effort, target, advance).result()


class _Search:
    def __init__(
        self,
        analysis: Analysis,
        functions: Functions,
        effort: Effort,
        target: float,
        advance: Callable[[float], None],
    ) -> None:
        self.bounds, self.effort, self.target, self._advance = PartBounds(analysis, functions), effort, target, advance
        self.goal_of = functions.goals.tolist()
        self.goals = [_Goal() for _ in range(functions.count)]
        self.end = time.monotonic() + effort.seconds
        self.begin, self.spent, self._number = time.monotonic(), 0.0, itertools.count()
        graph = analysis.graph
        size = COPIES * analysis.dtype.itemsize * sum(node.shape.numel() for node in graph.nodes)
        self.batch = max(2, min(effort.batch, int(analysis.max_memory // size)))

    def result(self) -> Tensor:
        """Search, and give the bounds."""
        device = self.bounds.functions.images.device
        known = self.bounds.functions.known
        for number, bound in zip(self.goal_of, known.tolist(), strict=True):
            if bound > self.target:
                self.goals[number].closed = min(self.goals[number].closed, bound)
        roots = self.bounds.roots()
        waiting = (known <= self.target).nonzero().flatten()
        for places in waiting.split(self.batch) if len(waiting) else ():
            self._bound(roots.chosen(places), known[places].tolist(), self.effort.first_steps)
        while not self._expired():
            chosen = self._chosen()
            if not chosen:
                break
            split = [one for one in chosen if one.column is not None]
            if split:
                halves = Parts.joined([one.part for one in split]).halves(
                    torch.tensor([one.column for one in split], device=device)
                )
                self._bound(halves, 2 * [one.bound for one in split], self.effort.steps)
            whole = [one for one in chosen if one.column is None]
            if whole:
                self._bound(
                    Parts.joined([one.part for one in whole]), [one.bound for one in whole], self.effort.first_steps
                )
        self._progress(1.0)
        return torch.tensor([goal.bound for goal in self.goals], dtype=torch.float64, device=device)

    def _expired(self) -> bool:
        return time.monotonic() >= self.end

    def _chosen(self) -> list[_Open]:
        """The next parts to split: the lowest of every goal in turn, until a batch is full."""
        found: list[_Open] = []
        taken = [0] * len(self.goals)
        most = self.batch // 2
        while len(found) < most:
            before = len(found)
            for number, goal in enumerate(self.goals):
                if len(found) < most and goal.is_open(self.target, self.effort.parts - 2 * taken[number]):
                    found.append(heapq.heappop(goal.waiting))
                    taken[number] += 1
            if len(found) == before:
                break
        return found

    def _bound(self, parts: Parts, parents: list[float], steps: int, *, again: bool = False) -> None:
        """Bound parts, or bound them `again`, none lower than its parent or than before, and put them where they belong."""
        found = self.bounds.bounded(parts, steps, self.target, self._expired)
        for part, bound, parent, column in zip(
            found.parts.one_by_one(), found.bounds.tolist(), parents, self._columns(found).tolist(), strict=True
        ):
            goal, value = self.goals[self.goal_of[int(part.functions)]], max(bound, parent)
            goal.made += 1
            # Without a point left the ascent goes on as long as that helps.
            ended = again and value - parent < LEAST_GAIN * (1 + abs(value))
            if value > self.target or ended:
                goal.closed = min(goal.closed, value)
            else:
                place = None if column < 0 else column
                heapq.heappush(goal.waiting, _Open(value, next(self._number), part, place))
        most = max(goal.made for goal in self.goals)
        self._progress(max(most / self.effort.parts, (time.monotonic() - self.begin) / self.effort.seconds))

    def _columns(self, found: Bounded) -> Tensor:
        """Where to split every part (D,); −1 where there is nothing to split."""
        expected = self.bounds.expected(found, RULES[self.effort.rule])
        if not expected.shape[1]:
            return torch.full_like(found.parts.functions, -1)
        value, place = expected.max(1)
        return torch.where(value > 0, place, -1)

    def _progress(self, share: float) -> None:
        share = min(1.0, share)
        if share > self.spent:
            self._advance(share - self.spent)
            self.spent = share
