"""Steps of attacks against linear programmes, and radii against the attacks that a user could write."""

import math

import pytest
import torch
from scipy.optimize import linprog, minimize

from certood.analysis.evidence.attacks import ascend, distances, generators, random_start, sparse_corner
from certood.analysis.evidence.nearest import attack_radii, smallest_step
from certood.analysis.question import Question
from certood.scores import Energy, MaxLogit
from tests.analysis.networks import NORMS, captured, images
from tests.quick import first_is_quick


def least_norm(slope: torch.Tensor, gain: float, point: torch.Tensor, norm: float) -> float:
    """The smallest norm of a step that gains so much inside the pixel range, by a solver."""
    count = len(slope)
    room = [(-float(x), 1 - float(x)) for x in point]
    if norm == 2:
        found = minimize(
            lambda d: d @ d,
            (slope * gain / (slope @ slope)).numpy(),
            jac=lambda d: 2 * d,
            bounds=room,
            constraints={"type": "ineq", "fun": lambda d: slope.numpy() @ d - gain, "jac": lambda d: slope.numpy()},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return math.sqrt(found.fun)
    sizes = 1 if norm == math.inf else count
    eye = torch.eye(count).double()
    beside = torch.ones(count, 1).double() if norm == math.inf else eye
    table = torch.cat([torch.cat([eye, -beside], 1), torch.cat([-eye, -beside], 1)])
    gains = torch.cat([-slope, torch.zeros(sizes).double()])[None]
    found = linprog(
        torch.cat([torch.zeros(count), torch.ones(sizes)]).numpy(),
        torch.cat([table, gains]).numpy(),
        torch.cat([torch.zeros(2 * count), torch.tensor([-gain])]).numpy(),
        bounds=room + [(0, None)] * sizes,
    )
    return float(found.fun)


@pytest.mark.parametrize("norm", NORMS)
def test_the_smallest_step_is_the_solution_of_its_programme(norm: float) -> None:
    torch.manual_seed(0)
    for _ in range(10):
        slope, point = torch.randn(6).double(), torch.rand(6).double()
        slope[0] = 0.0
        most = float((slope * torch.where(slope > 0, 1 - point, -point)).sum())
        for share in (0.0, 0.3, 0.9):
            gain = torch.tensor([share * most]).double()
            step = smallest_step(slope[None], gain, point[None], norm)[0]
            assert ((point + step >= -1e-12) & (point + step <= 1 + 1e-12)).all()
            assert float(slope @ step) == pytest.approx(float(gain), abs=1e-9)
            assert float(torch.linalg.vector_norm(step, norm)) == pytest.approx(
                least_norm(slope, float(gain), point, norm), rel=1e-4, abs=1e-6
            )
    out_of_reach = smallest_step(
        torch.ones(1, 3).double(), torch.tensor([9.0]).double(), torch.rand(1, 3).double(), norm
    )
    assert out_of_reach.isfinite().all()


def test_a_sparse_corner_gains_most_in_the_clipped_l1_ball() -> None:
    torch.manual_seed(0)
    slope, point, eps = torch.randn(1, 1, 2, 4).double(), torch.rand(1, 1, 2, 4).double(), torch.tensor([0.9]).double()
    step = sparse_corner(slope, point, eps)
    gained = float((slope * step).sum())
    assert float(step.abs().sum()) == pytest.approx(0.9)
    assert ((point + step >= 0) & (point + step <= 1 + 1e-12)).all()
    # The smallest step that gains as much has this length, and a longer one could gain more.
    assert least_norm(slope.flatten(), gained, point.flatten(), 1) == pytest.approx(0.9, rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_random_numbers_belong_to_the_image_and_not_to_the_batch(norm: float) -> None:
    x = images(6)
    eps = torch.full((6,), 0.3, dtype=torch.float64)
    whole = random_start(x, eps, norm, generators(7, range(6)))
    part = random_start(x[3:5], eps[3:5], norm, generators(7, [3, 4]))
    assert torch.equal(whole[3:5], part)
    assert not torch.equal(whole, random_start(x, eps, norm, generators(8, range(6))))
    assert (distances(whole, x, norm) <= eps * (1 + 1e-12)).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", first_is_quick(NORMS))
def test_radii_are_not_larger_than_those_of_a_search_over_balls(norm: float) -> None:
    """A bisection over ball sizes with a plain attack, which takes several times as many gradients, finds nothing much nearer."""
    graph, x = captured("conv", trained=True), images(12)
    scores = Energy()(graph(x))
    question = Question(graph, Energy(), float(scores.median()) + 1e-6, norm)
    accepted = scores <= question.threshold
    sign = torch.where(accepted, 1.0, -1.0).double()
    zero = torch.zeros(12).double()
    found, _ = attack_radii(question, x, accepted, zero, random=generators(0, range(12)))
    low, high = zero.clone(), torch.where(found.isfinite(), 2 * found, 1.0)
    for _ in range(7):
        middle = (low + high) / 2
        value, _ = ascend(
            lambda y: sign * (question.scores(y) - question.threshold),
            x,
            middle,
            norm,
            random=generators(1, range(12)),
            steps=30,
            restarts=2,
        )
        low, high = torch.where(value > 0, low, middle), torch.where(value > 0, middle, high)
    assert (found <= 1.25 * high).all()
    assert float((found / high).median()) < 1.01


def test_a_decision_that_no_image_changes_has_no_attack() -> None:
    graph, x = captured("conv", trained=True), images(3)
    for score in (Energy(), MaxLogit()):
        question = Question(graph, score, 1e6)
        radii, points = attack_radii(
            question, x, torch.ones(3, dtype=torch.bool), torch.full((3,), 0.5).double(), random=generators(0, range(3))
        )
        assert radii.isinf().all()
        assert torch.equal(points, x)
