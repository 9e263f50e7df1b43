"""What every objective must do, over the registry: values of NumPy formulas, the sign of gradients, margins."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from certood.train.objectives import OBJECTIVES, Objective
from certood.train.objectives.logistic import LogisticEnergy
from certood.train.penalty import GradientPenalty, gate_shares
from certood.train.step import TrainingStep

Logits = NDArray[np.float64]


def softmax(logits: Logits) -> Logits:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    values: Logits = powers / powers.sum(1, keepdims=True)
    return values


def energy(logits: Logits) -> Logits:
    values: Logits = -np.log(np.exp(logits).sum(1))
    return values


def hinge(inside: Logits, outside: Logits, margin_in: float, margin_out: float) -> float:
    above = np.maximum(energy(inside) - margin_in, 0) ** 2
    below = np.maximum(margin_out - energy(outside), 0) ** 2
    return float(above.mean() + below.mean())


def logistic(inside: Logits, outside: Logits, g: float) -> float:
    accepted, rejected = np.log1p(np.exp(energy(inside) - g)), np.log1p(np.exp(g - energy(outside)))
    return float(accepted.mean() + rejected.mean())


# Per objective: its term of ID and outlier logits, and its weight, by default parameters.
FORMULAS: dict[str, tuple[Any, float]] = {
    "cross-entropy": (lambda inside, outside: 0.0, 0.0),
    "outlier-exposure": (lambda inside, outside: -np.log(softmax(outside)).mean(), 0.5),
    "energy": (lambda inside, outside: hinge(inside, outside, -23.0, -5.0), 0.1),
    "absent-class": (lambda inside, outside: -np.log(softmax(outside)[:, -1]).mean(), 1.0),
    "logistic": (lambda inside, outside: logistic(inside, outside, -4.3), 0.5),
    "guard": (lambda inside, outside: logistic(inside, outside, 0.0), 1.0),
}


@pytest.fixture(params=OBJECTIVES.names())
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def objective(name: str) -> Objective:
    return OBJECTIVES.find(name)()


def term(objective: Objective, inside: Tensor, outside: Tensor) -> Tensor:
    learned = {key: torch.tensor(value, dtype=torch.float64) for key, value in objective.learned.items()}
    return objective.outlier_term(objective.trained_score(inside), objective.trained_score(outside), learned)


def logits(seed: int = 0, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = scale * torch.randn(11, 5, dtype=torch.float64, generator=generator)
    return made[:4], made[4:]


@pytest.mark.parametrize("scale", [0.1, 4.0, 12.0])
def test_the_term_is_that_of_its_formula(name: str, objective: Objective, scale: float) -> None:
    inside, outside = logits(scale=scale)
    formula, weight = FORMULAS[name]
    assert objective.weight == weight
    assert term(objective, inside, outside).item() == pytest.approx(formula(inside.numpy(), outside.numpy()), rel=1e-9)


def test_a_step_along_the_gradient_makes_id_scores_smaller_and_outlier_scores_larger(
    name: str, objective: Objective
) -> None:
    if not objective.needs_outliers:
        pytest.skip(f"{name} asks nothing of outliers")
    inside, outside = (part.requires_grad_() for part in logits())
    value = term(objective, inside, outside)
    gradients = torch.autograd.grad(value, (inside, outside), allow_unused=True)
    for part, gradient, sign in zip((inside, outside), gradients, (-1, 1), strict=True):
        if gradient is None:
            assert part is inside, "outliers must be looked at"
            continue
        moved = objective.trained_score(part - 1e-3 * gradient)
        assert (sign * (moved - objective.trained_score(part)) >= -1e-12).all()
        assert (sign * (moved - objective.trained_score(part)) > 1e-9).any()


def test_the_term_does_not_depend_on_the_batch_size_or_the_order(objective: Objective) -> None:
    inside, outside = logits()
    once = term(objective, inside, outside)
    torch.testing.assert_close(term(objective, inside.repeat(3, 1), outside.repeat(2, 1)), once)
    torch.testing.assert_close(term(objective, inside.flip(0), outside.flip(0)), once)


def test_more_outlying_outliers_never_cost_more(objective: Objective) -> None:
    # This is what makes a lower bound of the score an upper bound of the loss.
    learned = {key: torch.tensor(value) for key, value in objective.learned.items()}
    scores = torch.linspace(-30, -0.1, 50)
    over_outliers = [objective.outlier_term(scores, score[None], learned).item() for score in scores]
    over_inside = [objective.outlier_term(score[None], scores, learned).item() for score in scores]
    assert over_outliers == sorted(over_outliers, reverse=True)
    assert over_inside == sorted(over_inside)


def test_the_detection_score_and_the_trained_one_rank_outliers_alike(objective: Objective) -> None:
    peaked = torch.tensor([[9.0, 0.0, 0.0, 0.0, -9.0]])
    flat = torch.tensor([[0.0, 0.0, 0.0, 0.0, 5.0 if objective.absent_class else 0.0]])
    for score in (objective.score, objective.trained_score):
        assert score(flat) > score(peaked)


def test_margins_are_those_given_and_every_parameter_has_a_default(name: str) -> None:
    margins = OBJECTIVES.find(name)(margin_in=-2.0, margin_out=3.0)  # type: ignore[call-arg]
    learned = {key: torch.tensor(value) for key, value in margins.learned.items()}
    assert margins.margins(learned) == (-2.0, 3.0)


@pytest.mark.parametrize("name", ["cross-entropy", "outlier-exposure"])
def test_gates_without_margins_are_always_open(name: str) -> None:
    assert OBJECTIVES.find(name)().margins({}) == (math.inf, -math.inf)


def test_the_gates_of_the_logistic_form_open_at_its_threshold() -> None:
    scores = torch.tensor([-5.0, -4.4, -5.0, -4.4])
    shares = gate_shares(scores, 2, LogisticEnergy().margins({"g": torch.tensor(-4.5)}))
    assert shares.tolist() == [0.5, 0, 0, 0.5]


def test_a_step_learns_the_scalars_of_the_objective() -> None:
    step = TrainingStep(torch.nn.Flatten(), LogisticEnergy(kappa=0.7, start=-2.0), GradientPenalty())
    images = torch.rand(5, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    step(images[:2], torch.tensor([0, 1]), images[2:]).total.backward()
    assert [name for name, _ in step.named_parameters()] == ["learned.g"]
    inside, outside = (torch.from_numpy(energy(part.flatten(1).double().numpy())) for part in (images[:2], images[2:]))
    # d/dg of softplus(S − g) and softplus(g − S).
    expected = 0.7 * (-torch.sigmoid(inside + 2).mean() + torch.sigmoid(-2 - outside).mean())
    assert step.learned["g"].grad is not None
    assert step.learned["g"].grad.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bounds_of_the_trained_score_on_a_box_enclose_it(name: str, objective: Objective) -> None:
    # The loss of an outlier in a ball is bounded through them.
    generator = torch.Generator().manual_seed(0)
    centre = 3 * torch.randn(20, 5, dtype=torch.float64, generator=generator)
    radius = torch.rand(20, 5, dtype=torch.float64, generator=generator)
    lower, upper = objective.trained_score.box_bounds(centre - radius, centre + radius)
    share = torch.randint(0, 2, (500, 20, 5), generator=generator)
    found = objective.trained_score(centre + radius * (2 * share - 1))
    assert (lower <= found.amin(0) + 1e-12).all()
    assert (upper >= found.amax(0) - 1e-12).all()
    assert (found.amin(0) - lower).max() < 0.35 * (upper - lower).min(), name
