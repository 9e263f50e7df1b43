"""Radii certified by local Lipschitz constants: margin over constant within its ball, and the same over growing balls."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.question import Question


def min_rule_radius(margins: Tensor, grid: Sequence[float], constants: Tensor) -> Tensor:
    """The largest min(ε, m/L(ε)) (N,) over a grid of radii ε, for margins (N,) and constants (T, N).

    The minimum is obligatory: L(ε) says nothing outside its ball.
    """
    radii = torch.tensor(list(grid), dtype=torch.float64, device=margins.device)[:, None]
    return torch.minimum(radii, margins[None] / constants.clamp_min(1e-300)).amax(0).clamp_min(0)


def step_rule_radius(margins: Tensor, grid: Sequence[float], constants: Tensor) -> Tensor:
    """The largest t (N,) with ∫₀ᵗ L ≤ m, L the step function that is L(tᵢ) between tᵢ₋₁ and tᵢ; at most the last tᵢ."""
    left, radius = margins.clone(), torch.zeros_like(margins)
    before = 0.0
    going = torch.ones_like(margins, dtype=torch.bool)
    for end, constant in zip(grid, constants, strict=True):
        possible = left / constant.clamp_min(1e-300)
        step = possible.clamp(0, end - before)
        radius = radius + torch.where(going, step, 0.0)
        going = going & (possible >= end - before)
        left = left - constant * (end - before)
        before = end
    return radius


class LipschitzRadii(Evidence):
    """Radii from the certified constants on the balls of all ε, by the minimum rule and by the step rule."""

    quantities = (
        Quantity(
            "radius_lipschitz",
            of="radius",
            side="lower",
            kind="certified",
            label="radius from a local Lipschitz constant",
        ),
        Quantity(
            "radius_step",
            of="radius",
            side="lower",
            kind="certified",
            label="radius from the local Lipschitz constants of growing balls",
        ),
    )

    def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
        """The radii (N,) of the minimum rule and of the step rule; neither where there are no constants."""
        if "lipschitz" not in known.values:
            return {}
        order = sorted(range(len(self.settings.eps)), key=lambda place: self.settings.eps[place])
        grid, constants = [self.settings.eps[place] for place in order], known["lipschitz"][order]
        margins = known.certain_margins(question, images)
        return {
            "radius_lipschitz": min_rule_radius(margins, grid, constants),
            "radius_step": step_rule_radius(margins, grid, constants),
        }
