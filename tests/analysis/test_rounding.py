"""Bounds in float32: close to those in float64, and sound where rounding alone decides."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from certood.analysis.bounds import METHODS, LpBall, analyse, bound, capture
from certood.analysis.bounds.linear import full_precision
from certood.analysis.bounds.linear.losses import RoundingLosses
from certood.analysis.bounds.linear.relaxing import CentredRelaxation
from certood.analysis.bounds.operations import Activation, Convolution, Linear, precision
from certood.analysis.bounds.operations.base import Rows
from certood.errors import CertoodError
from tests.analysis.networks import NETWORKS, NORMS, RADII, captured, images
from tests.quick import every_is_quick, first_is_quick


@pytest.mark.parametrize("method", first_is_quick(["crown", "crown-ibp"]))
@pytest.mark.parametrize("name", every_is_quick(3, NETWORKS))
def test_it_is_as_tight_as_float64_up_to_rounding(name: str, method: str) -> None:
    graph, x = captured(name, trained=True), images()
    for norm in NORMS:
        ball = LpBall(x, RADII[norm], norm)
        exact, rounded = (bound(graph, ball, method, dtype=dtype) for dtype in (torch.float64, torch.float32))
        # Wider boxes of earlier layers may turn a line by a hair's breadth in either direction.
        hair = 1e-5 * exact.width + 1e-9
        assert (rounded.lower <= exact.lower + hair).all()
        assert (rounded.upper >= exact.upper - hair).all()
        # CROWN-IBP asks its last rows in float32, CROWN in float64.
        share = 2e-3 if method == "crown-ibp" else 1e-4
        assert (rounded.width <= exact.width * (1 + share) + 1e-9).all()


def affine() -> nn.Module:
    """ReLUs that are always active, on large values: every exact bound is known, and the last bits of it are rounded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 40), nn.ReLU(), nn.Linear(40, 4))
    model = model.double()
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.bias.add_(1e5)
    return model


@pytest.mark.parametrize("norm", NORMS)
def test_rounding_that_decides_is_covered(norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = affine(), 0.2 + 0.6 * images(6)
    graph, ball = capture(model, x), LpBall(x, 0.1, norm)
    last, rows = len(graph.nodes) - 1, torch.randn(6, 32, 4).double()
    exact = analyse(graph, ball, "crown-ibp").least(last, rows, both=True)
    found = analyse(graph, ball, "crown-ibp", dtype=torch.float32).least(last, rows, both=True)
    assert (found <= exact).all()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)
    monkeypatch.setitem(precision.UNITS, torch.float32, 0.0)
    # Without what is subtracted they are wrong.
    assert (analyse(graph, ball, "crown-ibp", dtype=torch.float32).least(last, rows, both=True) > exact).any()


@pytest.mark.parametrize("norm", NORMS)
def test_rounding_in_affine_chains_that_cancel_is_covered(norm: float) -> None:
    """Two matrices whose product is a millionth of either: what rounds in one is not small beside the range of both."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(72, 40), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4)
    ).double()
    with torch.no_grad():
        model[1].weight[20:] = model[1].weight[:20] + 1e-6 * torch.randn(20, 72).double()
        model[1].bias[20:] = model[1].bias[:20]
        model[2].weight[:, 20:] = -model[2].weight[:, :20]
        model[2].bias.add_(5.0)
        model[4].bias.add_(20.0)
    x = (0.2 + 0.6 * images(6)).view(6, -1)[:, :72].reshape(6, 2, 6, 6)
    graph, ball = capture(model, x), LpBall(x, 0.1, norm)
    exact, rounded = (analyse(graph, ball, "crown", dtype=dtype) for dtype in (torch.float64, torch.float32))
    # Every ReLU is active, so that float64 is exact.
    assert all((exact.boxes[node][0] > 0).all() for node in (3, 5))
    rows = torch.randn(6, 32, 10).double()
    here = replace(rounded, dtype=torch.float32)
    found, truth = here.least(5, rows, both=True), exact.least(5, rows, both=True)
    assert (found <= truth + 1e-12).all()
    # What is counted is the range of every product by itself, not that of their sum.
    inner, middle = graph.nodes[3].operation, rounded.boxes[2]
    assert isinstance(inner, Linear)
    assert (rounded.nodes.widths[3] >= (middle[1] - middle[0]) @ inner.weight.abs().T - 1e-12).all()


def test_a_point_loses_nothing() -> None:
    model, x = affine(), images(6)
    found = bound(capture(model, x), LpBall(x, 0.0), "crown", dtype=torch.float32)
    torch.testing.assert_close(found.lower, model(x).detach(), rtol=1e-11, atol=0)
    torch.testing.assert_close(found.upper, model(x).detach(), rtol=1e-11, atol=0)


def test_optimised_slopes_in_float32_are_sound_and_help() -> None:
    graph, x = captured("mlp", trained=True), images()
    ball = LpBall(x, 0.08)
    plain = bound(graph, ball, "crown", dtype=torch.float32)
    exact = bound(graph, ball, "alpha-crown", iterations=10)
    rounded = bound(graph, ball, "alpha-crown", iterations=10, dtype=torch.float32)
    assert (rounded.width <= plain.width).all()
    torch.testing.assert_close(rounded.lower, exact.lower, rtol=1e-3, atol=1e-3)


def test_precisions_that_bounds_cannot_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, ball = captured("mlp"), LpBall(images(), 0.1)
    with pytest.raises(CertoodError, match=r"float64 or float32, not torch\.float16"):
        bound(graph, ball, dtype=torch.float16)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    with pytest.raises(CertoodError, match="full precision"):
        bound(graph, ball, dtype=torch.float32)
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "conv", SimpleNamespace(fp32_precision="bf16"))
    with pytest.raises(CertoodError, match=r"mkldnn\.conv\.fp32_precision = 'ieee', which is now 'bf16'"):
        bound(graph, ball, dtype=torch.float32)


def test_a_large_bias_that_float32_does_not_hold_is_covered() -> None:
    """z = relu(x)/2 + 10000.1 for x in [0, 1]: float32 has 10000.0996 instead, so that z would end too early."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)
    ).double()
    for layer, weight, bias in ((model[1], 1.0, 0.0), (model[3], 0.5, 10000.1)):
        layer.weight.data.fill_(weight)
        layer.bias.data.fill_(bias)
    x = torch.full((1, 1, 1, 1), 0.5).double()
    lower, upper = analyse(capture(model, x), LpBall(x, 0.5), "crown", dtype=torch.float32).boxes[4]
    assert lower.item() <= 10000.1
    assert upper.item() >= 10000.6


def linear(weight: Tensor, bias: float = 0.0) -> nn.Linear:
    """A layer with these weights in float64."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.weight.data, layer.bias.data = weight.double(), torch.full((len(weight),), bias, dtype=torch.float64)
    return layer


# 1e16·x − 1e16·x + x = x = 1 in exact arithmetic, in every order of the weights; float64 misses it in some.
CANCELLING = torch.tensor(list(itertools.permutations([1e16, -1e16, 1.0])), dtype=torch.float64)


def test_weights_that_cancel_give_an_interval_and_not_a_point() -> None:
    model = nn.Sequential(nn.Flatten(), linear(CANCELLING), nn.ReLU(), linear(torch.eye(6)))
    x = torch.ones(1, 1, 1, 3).double()
    graph = capture(model, x)
    for method in METHODS:
        found = bound(graph, LpBall(x, 0.0), method, iterations=1)
        assert (found.lower <= 1).all(), method
        assert (found.upper >= 1).all(), method
        assert (found.width < 1000).all(), method


def test_rows_and_tightened_boxes_cover_the_rounding_of_their_references() -> None:
    """The same of rows alone: of the matrix as the last layer, and before an activation, whose box comes from rows in l2."""
    x = torch.ones(1, 1, 1, 3).double()
    last = capture(nn.Sequential(nn.Flatten(), linear(CANCELLING)), x)
    before = capture(nn.Sequential(nn.Flatten(), linear(CANCELLING), nn.ReLU(), linear(torch.eye(6))), x)
    for dtype in (torch.float64, torch.float32):
        least, negated = (
            analyse(last, LpBall(x, 0.0), "crown-ibp", dtype=dtype)
            .least(2, torch.eye(6).double()[None], both=True)[0]
            .chunk(2)
        )
        assert (least <= 1).all(), dtype
        assert (negated <= -1).all(), dtype
        lower, upper = analyse(before, LpBall(x, 0.0, 2), "crown", dtype=dtype).boxes[2]
        assert (lower <= 1).all(), dtype
        assert (upper >= 1).all(), dtype


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("centre", [0.0, 0.5, 1.0, 1 / 3])
@pytest.mark.parametrize("eps", [1e-15, 1e-17, 1e-40, 1e-300])
def test_a_tiny_ball_loses_nothing_of_its_range(eps: float, centre: float, norm: float) -> None:
    """Rows of the image: the change of w·x over the ball is known, and must not fall short of it."""
    ball = LpBall(torch.full((1, 1, 2, 2), centre).double(), eps, norm)
    rows = torch.tensor([3.0, 1.0, 2.0, 1.0]).double().view(1, 1, 1, 2, 2)
    dual = {math.inf: 7.0, 2: math.sqrt(15), 1: 3.0}[norm]
    for dtype in (torch.float64, torch.float32):
        falls, rises = (ball.least(sign * rows.to(dtype)).item() for sign in (1, -1))
        # At the corner 0 nothing falls, and at 1 nothing rises.
        assert falls <= (0 if centre == 0 else -eps * dual)
        assert rises <= (0 if centre == 1 else -eps * dual)
        if dtype == torch.float64 or eps > 1e-30:
            assert falls >= -1.01 * eps * dual - 1e-30
    assert (ball.lower < ball.centre).all() or centre == 0
    assert (ball.upper > ball.centre).all() or centre == 1


def test_intervals_of_single_operations_cover_exact_arithmetic() -> None:
    """Against fractions: the exact value of a sum of products at a point lies in the interval of no radius."""
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 1e8, 1e-160, 1e-300):
        weight = scale * torch.randn(6, 50, generator=generator).double()
        point = torch.rand(1, 50, generator=generator).double()
        kernel, patch = weight[:, :45].view(6, 5, 3, 3), point[:, :45].view(1, 5, 3, 3)
        for operation, value in (
            (Linear(weight, weight[:, 0]), point),
            (Convolution(kernel, weight[:, 0], (1, 1), (0, 0), (1, 1), 1), patch),
        ):
            lower, upper = (end.flatten() for end in operation.interval([(value, value)]))
            matrix = weight if isinstance(operation, Linear) else weight[:, :45]
            for row, low, high in zip(matrix, lower, upper, strict=True):
                inputs = value.flatten().tolist()
                exact = sum(Fraction(w) * Fraction(x) for w, x in zip(row.tolist(), inputs, strict=True))
                exact += Fraction(float(weight[matrix.eq(row).all(1).nonzero()[0, 0], 0]))
                assert Fraction(float(low)) <= exact <= Fraction(float(high))
                assert float(high - low) <= 1e-12 * scale * 50 + 1e-300


@pytest.mark.parametrize("method", first_is_quick(["crown-ibp", "crown"]))
def test_coefficients_that_underflow_are_covered(method: str) -> None:
    """1e50·relu(1e-25·relu(1e-25·x)) = x: rows of the inner layer are 1e-50, which float32 does not have."""
    small, large = torch.tensor([[1e-25]], dtype=torch.float64), torch.tensor([[1e50]], dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), linear(small), nn.ReLU(), linear(small), nn.ReLU(), linear(large))
    x = torch.full((1, 1, 1, 1), 0.5).double()
    for dtype in (torch.float64, torch.float32):
        found = bound(capture(model, x), LpBall(x, 0.5), method, dtype=dtype)
        assert found.lower.item() <= 0
        assert found.upper.item() >= 1
        assert found.width.item() < 1.001


def test_what_underflows_on_the_way_back_is_covered_where_it_grows_again() -> None:
    """1e-25·relu(1e-25·relu(1e38·x)) = 1e-12·x: in float32 the rows vanish between the matrices."""
    small, large = torch.tensor([[1e-25]], dtype=torch.float64), torch.tensor([[1e38]], dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), linear(large), nn.ReLU(), linear(small), nn.ReLU(), linear(small))
    x = torch.full((1, 1, 1, 1), 0.5).double()
    graph = capture(model, x)
    analysis = analyse(graph, LpBall(x, 0.5), "crown-ibp", dtype=torch.float32)
    least, negated = analysis.least(len(graph.nodes) - 1, torch.ones(1, 1, 1).double(), both=True)[0]
    assert least <= 0
    assert -negated >= 1e-12


def test_an_environment_that_lowers_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, ball = captured("mlp"), LpBall(images(), 0.1)
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    with pytest.raises(CertoodError, match="the environment sets ONEDNN_DEFAULT_FPMATH_MODE=BF16; unset it"):
        bound(graph, ball, dtype=torch.float32)
    assert bound(graph, ball).lower.isfinite().all()
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "strict")
    bound(graph, ball, dtype=torch.float32)

    def shortened(self: Tensor, other: Tensor) -> Tensor:
        return (self.bfloat16() @ other.bfloat16()).float()

    monkeypatch.setattr(full_precision, "_product", shortened)
    with pytest.raises(CertoodError, match="products of float32 lose digits here"):
        bound(graph, ball, dtype=torch.float32)


class Branches(nn.Module):
    """One activation that two branches read, each a matrix before another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = (nn.Linear(size, 6) for size in (12, 6, 6))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x.flatten(1)))
        logits: Tensor = self.last(torch.relu(self.one(y)) + torch.relu(self.two(y)) + y)
        return logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gap_of_a_relaxation_covers_all_losses_of_its_node(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the matrix before it, of its own products, and of adding up what its readers ask: each by its formula."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 2, 2).double()
    graph = capture(Branches().double(), x)
    analysis = replace(analyse(graph, LpBall(x, 0.1), "crown", dtype=dtype), dtype=dtype)
    nodes, all_losses = analysis.nodes, analysis.backward.losses
    unit = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}[dtype]
    relus = [index for index, node in enumerate(graph.nodes) if isinstance(node.operation, Activation)]
    shared = next(index for index in relus if len(graph.readers[index]) == 3)
    matrix = graph.nodes[graph.nodes[shared].inputs[0]].operation
    assert isinstance(matrix, Linear)
    lower, upper = analysis.boxes[graph.nodes[shared].inputs[0]]
    low, high = analysis.ball.lower.flatten(1), analysis.ball.upper.flatten(1)
    slopes = torch.where(upper > 0, (upper.clamp_min(0) / (upper - lower.clamp_max(0))), 0.0)
    # γₙ|W||x − x₀| with n products, over the box of the image; and two sums of rows, over the range of the activation.
    before = len(matrix.weight) * unit * (high - low) @ matrix.weight.abs().T / 2
    adding = 2 * unit * (upper.clamp_min(0) - lower.clamp_min(0)) / 2
    operation = graph.nodes[shared].operation
    assert isinstance(operation, Activation)
    lines = operation.lines(lower, upper)
    points = nodes.references[graph.nodes[shared].inputs[0]], nodes.references[shared]
    offsets = CentredRelaxation.about(lines, *points).offsets
    found = all_losses.elementwise(shared, lines, offsets)
    monkeypatch.setattr(all_losses, "sum_of_readers", lambda index: None)
    assert (found - all_losses.elementwise(shared, lines, offsets) >= 0.99 * adding).all()
    monkeypatch.undo()
    assert (found >= slopes * before + adding).all()
    own = nodes.reach(graph.nodes[shared].inputs[0]) * unit * 6 * 1.01
    without_matrix = slopes * own + adding
    assert (found >= without_matrix + 0.99 * slopes * before).all()
    assert (found > without_matrix).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_of_a_node_that_several_read_includes_adding_them_up(dtype: torch.dtype) -> None:
    """Of the same matrix, read once or by two branches, the second loss is larger by one rounding of its range."""
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self, more: bool) -> None:
            super().__init__()
            self.first, self.last, self.more = nn.Linear(12, 6), nn.Linear(6, 3), more

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x.flatten(1))
            z = torch.relu(y) + (torch.tanh(y) if self.more else 0.0)
            logits: Tensor = self.last(z)
            return logits

    single, double = Twice(False).double(), Twice(True).double()
    double.load_state_dict(single.state_dict())
    x = torch.rand(2, 3, 2, 2).double()
    unit = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}[dtype]
    losses = []
    for model in (single, double):
        graph = capture(model, x)
        found = analyse(graph, LpBall(x, 0.1), "crown-ibp", dtype=dtype)
        node = next(index for index, one in enumerate(graph.nodes) if isinstance(one.operation, Linear))
        losses.append(found.backward.losses.linear(node))
        reach = found.nodes.reach(node)
    assert (losses[1] - losses[0] >= 0.99 * unit * reach).all()


def test_adding_up_what_branches_ask_of_a_linear_node_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two matrices read another one, with no relaxation between: of a cast that costs 1 at that node every bound pays 1."""
    torch.manual_seed(0)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(12, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x.flatten(1))
            return torch.cat([self.left(y), self.right(y)], 1)

    x = torch.rand(2, 3, 2, 2).double()
    graph = capture(Branches().double(), x)
    shared = next(index for index in range(len(graph.nodes)) if len(graph.readers[index]) == 2)
    rows = torch.randn(2, 4, 6).double()

    def lowest(cost: float) -> Tensor:
        def of_cast(_: RoundingLosses, index: int, rows: Rows) -> Tensor:
            return torch.full((), cost if index == shared else 0.0, dtype=torch.float64)

        monkeypatch.setattr(RoundingLosses, "of_cast", of_cast)
        found = analyse(graph, LpBall(x, 0.1), "interval", dtype=torch.float32)
        return found.backward.to_image(len(graph.nodes) - 1, rows)[1]

    paid = lowest(0.0) - lowest(1.0)
    torch.testing.assert_close(paid, torch.ones_like(paid), rtol=1e-6, atol=0)
