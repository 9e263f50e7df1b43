"""Bounds of gradients: exact on a point, never left by sampled or attacked gradients, closed forms, derivative ranges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from certood.analysis.bounds import LpBall, analyse, capture, gradient_bound, logit_gradient_bound, logits_of
from certood.analysis.bounds.gradient_bounds import SumBox, _norm_row
from certood.analysis.bounds.operations import activations as known
from certood.models.classifier import Normalise
from certood.scores import SCORES, Energy, Score, score_by_name
from tests.analysis.networks import NETWORKS, NORMS, RADII, SHAPE, captured, images, network, sampled
from tests.quick import every_is_quick, first_is_quick

DUAL = {math.inf: 1, 2: 2, 1: math.inf}


def gradients(model: nn.Module, score: Score, points: Tensor) -> Tensor:
    points = points.detach().requires_grad_()
    (found,) = torch.autograd.grad(score(model(points)).sum(), points)
    return found


def steepest(model: nn.Module, score: Score, x: Tensor, eps: float, norm: float) -> Tensor:
    """Random search for large gradients, restarted from the best point: gradients (steps, N, C, H, W)."""
    best, found = x.clone(), []
    for _ in range(12):
        points = (x + (0.7 * (best - x) + 0.3 * (sampled(best, eps, norm, 40) - best))).clamp(0, 1)
        slopes = gradients(model, score, points.flatten(0, 1)).view_as(points)
        sizes = slopes.flatten(2).norm(DUAL[norm], dim=2)
        best = points[sizes.argmax(0), torch.arange(len(x))]
        found.append(slopes)
    return torch.cat(found)


@pytest.mark.parametrize("name", every_is_quick(3, NETWORKS))
def test_on_a_point_the_bounds_are_the_gradient(name: str) -> None:
    graph, x = captured(name), images()
    model = graph.module
    for score in map(score_by_name, SCORES.names()):
        found = gradient_bound(graph, LpBall(x, 0.0), score=score, method="crown")
        exact = gradients(model, score, x)
        torch.testing.assert_close(found.lower, exact, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.upper, exact, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.dual_norm, exact.flatten(1).abs().sum(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
@pytest.mark.parametrize("name", every_is_quick(2, NETWORKS))
def test_no_gradient_leaves_the_bounds(name: str, norm: float) -> None:
    graph, x, eps = captured(name, trained=True), images(), RADII[norm]
    model = graph.module
    # A score enters by its gradient with respect to the logits, which does not depend on the norm.
    for score in map(score_by_name, SCORES.names() if norm == math.inf else ("energy", "msp")):
        slopes = torch.cat(
            [
                gradients(model, score, sampled(x, eps, norm, 300).flatten(0, 1)).view(300, *x.shape),
                steepest(model, score, x, eps, norm),
            ]
        )
        largest = slopes.flatten(2).norm(DUAL[norm], dim=2).amax(0)
        loose = gradient_bound(graph, LpBall(x, eps, norm), score=score, method="interval")
        tight = gradient_bound(graph, LpBall(x, eps, norm), score=score, method="crown")
        for found in (loose, tight):
            assert (found.lower <= slopes.amin(0) + 1e-9).all(), (score.name, found.method)
            assert (found.upper >= slopes.amax(0) - 1e-9).all(), (score.name, found.method)
            assert (found.dual_norm >= largest - 1e-9).all(), (score.name, found.method)
        assert (tight.dual_norm <= loose.dual_norm + 1e-9).all()


def test_linear_bounds_are_tighter_than_intervals() -> None:
    graph, x = captured("mlp", trained=True), images()
    loose, tight = (
        gradient_bound(graph, LpBall(x, 0.03), score=Energy(), method=method).dual_norm
        for method in ("interval", "crown")
    )
    assert (tight < 0.9 * loose).all()


@pytest.mark.parametrize("output", [0, 3])
def test_gradients_of_a_logit(output: int) -> None:
    model, x = network("conv", trained=True), images()
    found = logit_gradient_bound(capture(model, x), LpBall(x, 0.02), output)
    points = sampled(x, 0.02, math.inf, 500).flatten(0, 1).requires_grad_()
    (slopes,) = torch.autograd.grad(model(points)[:, output].sum(), points)
    assert (found.lower <= slopes.view(500, *x.shape).amin(0) + 1e-9).all()
    assert (found.upper >= slopes.view(500, *x.shape).amax(0) - 1e-9).all()


@pytest.mark.parametrize(("eps", "published"), [(0.0, 0.28031), (1 / 255, 0.29210), (4 / 255, 0.35132)])
def test_a_network_with_published_bounds(eps: float, published: float) -> None:
    """Logit 1 of auto_LiRPA's test network, l_inf: the same at a point, and at most 2 % above its bounds around it.

    Its image is not in [0, 1]: x = 8y − 4 moves it there, and divides radii by 8.
    """
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(192, 100), nn.ReLU(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 100), nn.Sigmoid(), nn.Linear(100, 10),
    )  # fmt: skip
    image = (torch.randn(1, 3, 8, 8).double() + 4) / 8
    graph = capture(nn.Sequential(Normalise([0.5] * 3, [0.125] * 3), model), image)
    found = logit_gradient_bound(graph, LpBall(image, eps / 8), 1).dual_norm.item() / 8
    assert found == pytest.approx(published, rel=1e-4 if eps == 0 else 0.02)
    points = sampled(image, eps / 8, math.inf, 500).flatten(0, 1).requires_grad_()
    (slopes,) = torch.autograd.grad(graph(points)[:, 1].sum(), points)
    assert slopes.flatten(1).abs().sum(1).max().item() / 8 <= found * (1 + 1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_the_energy_of_a_linear_network_in_closed_form(norm: float) -> None:
    """One logit: S = −w·x, whose gradient is −w everywhere, and whose Lipschitz constant is ‖w‖_q."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 1)).double()
    found = gradient_bound(capture(model, images()), LpBall(images(), 0.1, norm), score=Energy())
    weight = model[1].weight.detach()
    torch.testing.assert_close(found.lower.flatten(1), -weight.expand(2, -1), rtol=1e-9, atol=1e-9)
    expected = weight.norm(DUAL[norm], dim=1).expand(2)
    torch.testing.assert_close(found.dual_norm, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
@pytest.mark.parametrize("classes", [3, 40])
def test_the_energy_is_no_steeper_than_a_mean_of_logits(norm: float, classes: int) -> None:
    """Of a linear network, where every gradient of a logit is known: the largest mean of their norms over the possible weights,
    by brute force over the order in which weights are filled up."""
    torch.manual_seed(classes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, classes)).double()
    x, eps = torch.rand(2, 1, 3, 3, dtype=torch.float64), 0.3
    graph, ball = capture(model, x), LpBall(x, 0.3, norm)
    found = gradient_bound(graph, ball, score=Energy())
    weight = model[1].weight.detach()
    norms = weight.norm(DUAL[norm], dim=1)
    low, high = (-end for end in reversed(Energy().gradient_box(logits_of(analyse(graph, ball)))[:2]))
    for image in range(2):
        weights, left = low[image].clone(), 1 - float(low[image].sum())
        for place in norms.argsort(descending=True).tolist():
            more = min(left, float(high[image, place] - weights[place]))
            weights[place] += more
            left -= more
        best = float((weights * norms).sum())
        if classes <= 10:
            assert float(found.dual_norm[image]) <= best * (1 + 1e-9)
        assert float(found.dual_norm[image]) <= float(norms.max()) * (1 + 1e-9)
    slopes = steepest(model, Energy(), x, eps, norm).flatten(2).norm(DUAL[norm], dim=2)
    assert (slopes.amax(0) <= found.dual_norm * (1 + 1e-9)).all()


def test_a_kink_in_the_ball_gives_both_slopes() -> None:
    model = nn.Sequential(Normalise([0.5], [1.0]), nn.Flatten(), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    model[3].weight.data.fill_(3.0)
    found = logit_gradient_bound(capture(model, torch.zeros(1, 1, 1, 1)), LpBall(torch.full((1, 1, 1, 1), 0.5), 0.1), 0)
    assert found.lower.item() == pytest.approx(0, abs=1e-9)
    assert found.upper.item() == pytest.approx(3)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_the_least_value_over_a_box_with_a_sum(seed: int, outputs: int) -> None:
    """Against brute force: vertices of the set have all entries but one at an end."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(2, 1, outputs, dtype=torch.float64, generator=generator).sort(0).values
    total = float((ends[0] + torch.rand(1, dtype=torch.float64, generator=generator) * (ends[1] - ends[0])).sum())
    row = torch.randn(1, 1, outputs, dtype=torch.float64, generator=generator)
    box = SumBox(ends[0], ends[1], total)
    found = box.least(row) + (row[0] * box.centre).sum()
    best = math.inf
    for free in range(outputs):
        for pattern in range(2 ** (outputs - 1)):
            bits = [(pattern >> place) & 1 for place in range(outputs - 1)]
            bits.insert(free, 0)
            point = ends[torch.tensor(bits), 0, torch.arange(outputs)].clone()
            point[free] = total - point.sum() + point[free]
            if ends[0, 0, free] - 1e-12 <= point[free] <= ends[1, 0, free] + 1e-12:
                best = min(best, float((row[0, 0] * point).sum()))
    assert found.item() == pytest.approx(best, abs=1e-9)


ACTIVATIONS = [
    known.RELU,
    known.SIGMOID,
    known.TANH,
    known.SILU,
    known.GELU,
    known.EXP,
    known.HARDSIGMOID,
    known.HARDSWISH,
    known.softplus(2.0),
    known.leaky_relu(0.1),
    known.elu(0.7),
    known.clamp(0.0, 6.0),
    known.clamp(-math.inf, 1.0),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ACTIVATIONS), st.floats(-8, 8), st.floats(0, 6))
def test_no_derivative_leaves_its_range(activation: known.Activation, lower: float, width: float) -> None:
    low, high = torch.tensor([[lower], [lower + width]], dtype=torch.float64)
    least, most = activation.slopes(low, high)
    points = torch.linspace(lower, lower + width, 2001, dtype=torch.float64).requires_grad_()
    (slopes,) = torch.autograd.grad(activation.function(points).sum(), points)
    # PyTorch differentiates hardsigmoid and hardswish with a 1/6 of single precision.
    assert least.item() <= slopes.min().item() + 1e-8
    assert most.item() >= slopes.max().item() - 1e-8
    # A range is no wider than what was seen, up to the step of the grid; at the very ends a jump may be counted in.
    if least.isinf().any():
        # Where PyTorch cuts softplus off it jumps, by little: no slope bounds that.
        assert isinstance(activation, known.Softplus)
        assert lower <= activation.edge <= lower + width
    elif width > 0 and not any(end.is_integer() for end in (lower, lower + width)):
        assert most.item() - least.item() <= (slopes.max() - slopes.min()).item() + 0.02 + 0.35 * width


def test_shapes() -> None:
    found = gradient_bound(captured("mlp"), LpBall(images(), 0.01), score=Energy())
    assert found.lower.shape == (2, *SHAPE)
    assert found.dual_norm.shape == (2,)


@pytest.mark.parametrize("norm", [math.inf, 2])
def test_the_chord_of_a_norm_lies_above_it_on_its_box_and_touches_it_at_a_corner(norm: float) -> None:
    """a·g + b ≥ ‖g‖₁ or ‖g‖₂² at random points of a box with ends of every sign, with equality where all g are ends."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, 40, 6, dtype=torch.float64, generator=generator).sort(0).values
    row, constant = _norm_row(ends[0], ends[1], norm)

    def gap(points: Tensor) -> Tensor:
        size = points.abs().sum(1) if norm == math.inf else points.square().sum(1)
        return (row * points).sum(1) + constant - size

    for _ in range(200):
        share = torch.rand(40, 6, dtype=torch.float64, generator=generator)
        assert (gap(torch.lerp(ends[0], ends[1], share)) >= -1e-12).all()
        corner = torch.where(share < 0.5, ends[0], ends[1])
        torch.testing.assert_close(gap(corner), torch.zeros(40, dtype=torch.float64), atol=1e-12, rtol=0)
