"""Branching rules: what is expected of a split at a branching point, for every part and neuron.

A rule estimates by how much the bound of either half would be higher. It sees one neuron at a time, through the coefficient with
which the bound reads its value; what a split changes elsewhere is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from certood.analysis.bounds.operations.base import Elementwise


@dataclass(frozen=True)
class Neurons:
    """Neurons of an activation that may be split at `place`: planes (D, *shape), like all that follows.

    `rows` are the coefficients of their values in the bound, [lower, upper] the boxes of their inputs, `centre` the inputs at the
    centre of the ball.
    """

    operation: Elementwise
    place: Tensor
    rows: Tensor
    lower: Tensor
    upper: Tensor
    centre: Tensor

    @property
    def apart(self) -> Tensor:
        """Those with the place inside their box."""
        return (self.lower < self.place) & (self.upper > self.place)

    @property
    def halves(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The boxes on the left and on the right of the place."""
        left, right = torch.minimum(self.upper, self.place), torch.maximum(self.lower, self.place)
        return (self.lower, left), (right, self.upper)

    def contribution(self, lower: Tensor, upper: Tensor, point: Tensor) -> Tensor:
        """What the neurons contribute to the bound, if their input is at a point, by the lines on the box [lower, upper]."""
        lines = self.operation.lines(lower, upper)
        below = lines.lower_slope * point + lines.lower_shift
        above = lines.upper_slope * point + lines.upper_shift
        return torch.where(self.rows >= 0, self.rows * below, self.rows * above)


Rule = Callable[[Neurons], Tensor]


def gap(neurons: Neurons) -> Tensor:
    """How far the function lies from the chord of the box at the place, times the coefficient: |A|·(−l·u)/(u − l) for a ReLU."""
    function = neurons.operation.forward
    left, right, here = (function([at]) for at in (neurons.lower, neurons.upper, neurons.place))
    width = torch.where(neurons.apart, neurons.upper - neurons.lower, 1.0)
    chord = left + (right - left) * (neurons.place - neurons.lower) / width
    return neurons.rows.abs() * (chord - here).abs()


def babsr(neurons: Neurons) -> Tensor:
    """BaBSR (Bunel et al., JMLR 2020, arXiv 1909.06588): the larger change of a half's contribution, with inputs at the centre.

    The paper takes the bias of the layer before for the input; rows here are about the centre of the ball, so that the input
    there takes the place of the bias.
    """
    before = neurons.contribution(neurons.lower, neurons.upper, neurons.centre)
    left, right = (neurons.contribution(*half, neurons.centre) - before for half in neurons.halves)
    return torch.maximum(left, right).abs()


# Where the centre's input lies at the place of a split, no line gains there, and a split may help all the same.
OTHERWISE = 1e-3


def nearest(neurons: Neurons) -> Tensor:
    """The gain of both halves together, each at the point of its box that is nearest to the centre's input; a little of `gap`."""
    gain = torch.zeros_like(neurons.lower)
    for lower, upper in neurons.halves:
        point = torch.minimum(torch.maximum(neurons.centre, lower), upper)
        before = neurons.contribution(neurons.lower, neurons.upper, point)
        gain = gain + neurons.contribution(lower, upper, point) - before
    # Lines of a function that bends are closest to it inside the whole box: at the end of a half they may even lose.
    return gain.clamp_min(0) + OTHERWISE * gap(neurons)


RULES: Mapping[str, Rule] = MappingProxyType({"gap": gap, "babsr": babsr, "nearest": nearest})
