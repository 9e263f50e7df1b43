"""Parts of balls, and lower bounds of functions on them."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from certood.analysis.bounds.ball import Region, or_infinite
from certood.analysis.bounds.branching.functions import Functions
from certood.analysis.bounds.branching.points import Columns, Point
from certood.analysis.bounds.branching.rules import Neurons, Rule
from certood.analysis.bounds.linear.analysis import Analysis
from certood.analysis.bounds.linear.backward import BackwardPass
from certood.analysis.bounds.linear.choices import Choices
from certood.analysis.bounds.linear.nodes import NodeBounds
from certood.analysis.bounds.operations.base import Elementwise, Interval
from certood.analysis.bounds.operations.precision import outward_sum
from certood.analysis.bounds.operations.relaxations import crown_slope

SLOPE_RATE, MULTIPLIER_RATE, DECAY = 0.1, 0.1, 0.98


@dataclass(frozen=True)
class Parts:
    """D parts of balls: which of the `functions` (D,) is bounded on each, and on which side of every branching point it lies.

    `signs` (D, C) are −1, 1, or 0 for both; `slopes` and `multipliers` (D, C) and `parameters` (D, P) are what an ascent has
    found, with which that of a part's halves begins.
    """

    functions: Tensor
    signs: Tensor
    slopes: Tensor
    multipliers: Tensor
    parameters: Tensor

    def __len__(self) -> int:
        return len(self.functions)

    def chosen(self, places: Tensor) -> "Parts":
        """Some of the parts, in any order."""
        return Parts(*(getattr(self, field.name)[places] for field in fields(self)))

    def one_by_one(self) -> list["Parts"]:
        """The parts, each by itself."""
        columns = [getattr(self, field.name).split(1) for field in fields(self)]
        return [Parts(*own) for own in zip(*columns, strict=True)]

    @staticmethod
    def joined(parts: list["Parts"]) -> "Parts":
        """All of several."""
        return Parts(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Parts)))

    def halves(self, columns: Tensor) -> "Parts":
        """The right halves of all parts, then the left ones, split at these columns (D,)."""
        place = columns[:, None]
        signs = [self.signs.scatter(1, place, sign) for sign in (1, -1)]
        twice = torch.arange(2 * len(self), device=columns.device) % len(self)
        return Parts(
            self.functions[twice],
            torch.cat(signs),
            self.slopes[twice],
            self.multipliers[twice],
            self.parameters[twice],
        )


@dataclass(frozen=True)
class Bounded:
    """Parts with their bounds (D,), the boxes of all nodes there, and the coefficients of activations, by node, (D, *shape)."""

    parts: Parts
    bounds: Tensor
    boxes: dict[int, Interval]
    rows: dict[int, Tensor]


class PartBounds:
    """Bounds of functions on parts of the balls of an analysis."""

    def __init__(self, analysis: Analysis, functions: Functions) -> None:
        self.analysis, self.functions = analysis, functions
        self.columns = Columns.of(analysis.nodes)

    def roots(self) -> Parts:
        """The whole balls, one for every function."""
        count, device = len(self.functions.images), self.functions.images.device
        signs = torch.zeros(count, len(self.columns), dtype=torch.int8, device=device)
        graph, boxes = self.analysis.graph, self.analysis.boxes
        planes = {point: crown_slope(*boxes[graph.nodes[point[0]].inputs[0]]) for point in self.columns.at}
        slopes = self.columns.gather(planes).float()[self.functions.images] if planes else signs.float()
        numbers = torch.arange(count, device=device)
        return Parts(numbers, signs, slopes, torch.zeros_like(slopes), self.functions.start)

    def bounded(self, parts: Parts, steps: int, target: float, expired: Callable[[], bool]) -> Bounded:
        """Bounds by ascent on slopes, multipliers and the parameters of the functions, from where those of the parts are.

        The best of all steps counts. It ends early where all bounds exceed the target, or where time has `expired`.
        """
        backward, ball = self._restricted(parts)
        images, sides = self.functions.images[parts.functions], self.sides(parts)
        slopes = parts.slopes.to(torch.float64).requires_grad_()
        multipliers = parts.multipliers.to(torch.float64).requires_grad_()
        parameters = parts.parameters.clone().requires_grad_()
        groups = [
            {"params": [slopes, parameters], "lr": SLOPE_RATE},
            {"params": [multipliers], "lr": MULTIPLIER_RATE},
        ]
        optimiser = torch.optim.Adam(groups)
        best = torch.full((len(parts),), -torch.inf, dtype=torch.float64, device=slopes.device)
        kept = [value.detach().clone() for value in (slopes, multipliers, parameters)]
        planes: dict[int, list[Tensor]] = {}
        rows: dict[int, Tensor] = {}
        for step in range(steps + 1):
            with torch.set_grad_enabled(step < steps):
                choices = Choices(self._slopes(slopes), self.subtracted(images, sides, multipliers), rows, planes)
                found = self._values(backward, ball, parts.functions, parameters, choices)
            values = or_infinite(found.detach(), -1)
            better = values > best
            best = torch.where(better, values, best)
            with torch.no_grad():
                now = slopes, multipliers, parameters
                kept = [torch.where(better[:, None], *pair) for pair in zip(now, kept, strict=True)]
            # A network and a function may leave nothing to ascend.
            if step == steps or not found.requires_grad or bool((best > target).all()) or expired():
                break
            optimiser.zero_grad()
            (-found.sum()).backward()
            optimiser.step()
            with torch.no_grad():
                slopes.clamp_(0, 1)
                multipliers.clamp_min_(0)
            for group in optimiser.param_groups:
                group["lr"] *= DECAY
        found_parts = Parts(parts.functions, parts.signs, kept[0].float(), kept[1].float(), kept[2])
        return Bounded(found_parts, best, backward.nodes.boxes, {node: reached[:, 0] for node, reached in rows.items()})

    def expected(self, bounded: Bounded, rule: Rule) -> Tensor:
        """What a rule expects of a split at every column (D, C): 0 where there is nothing to split, or a line is not finite."""
        if not len(self.columns):
            return bounded.bounds.new_zeros(len(bounded.bounds), 0)
        parts, nodes = bounded.parts, self.analysis.nodes
        images = self.functions.images[parts.functions]
        signs = self.columns.planes(parts.signs)
        planes: dict[Point, Tensor] = {}
        for point, places in self.columns.at.items():
            node, place = point[0], places[images]
            own = nodes.graph.nodes[node]
            assert isinstance(own.operation, Elementwise)
            source = own.inputs[0]
            lower, upper = bounded.boxes[source]
            neurons = Neurons(own.operation, place, bounded.rows[node], lower, upper, nodes.references[source][images])
            planes[point] = torch.where(neurons.apart & (signs[point] == 0), rule(neurons).nan_to_num(0.0), 0.0)
        return self.columns.gather(planes)

    def _slopes(self, slopes: Tensor) -> dict[int, Tensor]:
        graph = self.analysis.graph
        planes = self.columns.planes(slopes)
        return {node: plane[:, None] for (node, _), plane in planes.items() if graph.nodes[node].operation.adjustable}

    def sides(self, parts: Parts) -> dict[Point, Tensor]:
        """On which side of the points at which any of them is split the parts lie: −1, 0 or 1, (D, *shape)."""
        planes = self.columns.planes(parts.signs.to(torch.float64))
        return {point: plane for point, plane in planes.items() if plane.any()}

    def subtracted(
        self, images: Tensor, sides: dict[Point, Tensor], multipliers: Tensor
    ) -> dict[int, list[tuple[Tensor, Tensor]]]:
        """Multiples m (D, 1, *shape) and places k (D, *shape) by node of an activation, for multipliers (D, C) of at least 0.

        On parts of the balls `images` (D,) with these `sides` m·(z − k) ≥ 0 for the input z of the activation.
        """
        found: dict[int, list[tuple[Tensor, Tensor]]] = {}
        planes = self.columns.planes(multipliers) if sides else {}
        for point, side in sides.items():
            found.setdefault(point[0], []).append(((side * planes[point])[:, None], self.columns.at[point][images]))
        return found

    def _values(
        self, backward: BackwardPass, ball: Region, functions: Tensor, parameters: Tensor, choices: Choices
    ) -> Tensor:
        """Lower bounds (D,) of the functions with these parameters."""
        last = len(self.analysis.graph.nodes) - 1
        rows, constants = self.functions.family(parameters, functions)
        reached, added = backward.to_image(last, rows[:, None], choices=choices)
        start, loss = backward.nodes.at_reference(last, rows[:, None])
        linear = outward_sum(outward_sum(start - loss, added), ball.least(reached))
        return outward_sum(linear[:, 0], constants)

    def boxes(self, parts: Parts) -> dict[int, Interval]:
        """The boxes of the images of parts, with inputs of activations cut off at branching points."""
        images = self.functions.images[parts.functions]
        boxes = {node: (lower[images], upper[images]) for node, (lower, upper) in self.analysis.boxes.items()}
        for point, sign in self.sides(parts).items():
            source, place = self.analysis.graph.nodes[point[0]].inputs[0], self.columns.at[point][images]
            low, high = boxes[source]
            low = torch.where(sign > 0, torch.maximum(low, place), low)
            boxes[source] = (low, torch.where(sign < 0, torch.minimum(high, place), high))
        return boxes

    def _restricted(self, parts: Parts) -> tuple[BackwardPass, Region]:
        """What carries rows back over parts, and the balls of their images."""
        whole, images = self.analysis.nodes, self.functions.images[parts.functions]
        ball = whole.ball.chosen(images)
        values = {node: value[images] for node, value in whole.references.items()}
        # A part is no wider than the whole.
        widths = {node: width[images] for node, width in whole.widths.items()}
        nodes = NodeBounds(whole.graph, ball, values, self.boxes(parts), widths)
        losses = self.analysis.backward.losses.chosen(images, nodes)
        return BackwardPass(nodes, self.analysis.dtype, self.analysis.max_memory, losses=losses), ball
