"""Relaxations and ranges by property: no sampled value of a function leaves them; they touch where they should."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from certood.analysis.bounds.operations import MaxPool, Product, activations, bends, jumps, powers
from certood.analysis.bounds.operations.activations import Activation
from certood.analysis.bounds.operations.relaxations import relu_relaxation

ACTIVATIONS = [
    activations.RELU,
    activations.SIGMOID,
    activations.TANH,
    activations.SILU,
    activations.GELU,
    activations.EXP,
    activations.HARDSIGMOID,
    activations.HARDSWISH,
    activations.softplus(1.0),
    activations.softplus(3.0),
    activations.leaky_relu(0.01),
    activations.leaky_relu(0.5),
    activations.elu(1.0),
    activations.elu(0.3),
    activations.clamp(0.0, 6.0),
    activations.clamp(-1.0, 1.0),
    activations.clamp(-float("inf"), 0.5),
    bends.ERF,
    bends.MISH,
    bends.GELU_TANH,
    powers.SQUARE,
    powers.power(3.0),
    powers.power(4.0),
    jumps.hardshrink(0.51234),
    jumps.threshold(0.21234, -1.0),
]
ends = st.floats(-12, 12).map(lambda x: round(x, 3))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
@given(one=ends, two=ends)
@settings(max_examples=40, deadline=None)
def test_no_value_leaves_the_lines_or_the_range(activation: Activation, one: float, two: float) -> None:
    lower, upper = (torch.tensor([end], dtype=torch.float64) for end in sorted((one, two)))
    points = lower + torch.linspace(0, 1, 1001, dtype=torch.float64) * (upper - lower)
    values = activation.function(points)
    lines = activation.relaxation(lower, upper)
    scale = 1e-9 * (1 + values.abs().max())
    assert (lines.lower_slope * points + lines.lower_shift <= values + scale).all()
    assert (lines.upper_slope * points + lines.upper_shift >= values - scale).all()
    low, high = activation.interval([(lower, upper)])
    assert low - scale <= values.min()
    assert values.max() <= high + scale
    assert low >= values.min() - 1e-3
    assert high <= values.max() + 1e-6 * (1 + values.abs().max())


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
@pytest.mark.parametrize("at", [-7.0, -0.3, 0.0, 0.4, 5.0])
def test_a_point_is_bounded_by_its_value(activation: Activation, at: float) -> None:
    point = torch.tensor([at], dtype=torch.float64)
    lines = activation.relaxation(point, point)
    value = activation.function(point)
    torch.testing.assert_close(lines.lower_slope * point + lines.lower_shift, value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lines.upper_slope * point + lines.upper_shift, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_lines_close_in_as_the_interval_shrinks(activation: Activation) -> None:
    gaps = []
    for half in (1.0, 0.1):
        lower, upper = (torch.tensor([0.7 + sign * half], dtype=torch.float64) for sign in (-1, 1))
        lines = activation.relaxation(lower, upper)
        middle = torch.tensor([0.7], dtype=torch.float64)
        gaps.append((lines.upper_slope - lines.lower_slope) * middle + lines.upper_shift - lines.lower_shift)
    assert gaps[1] <= 0.2 * gaps[0] + 1e-9


@given(one=ends, two=ends, slope=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_every_slope_in_the_unit_interval_is_sound_for_relu(one: float, two: float, slope: float) -> None:
    lower, upper = (torch.tensor([end], dtype=torch.float64) for end in sorted((one, two)))
    points = lower + torch.linspace(0, 1, 501, dtype=torch.float64) * (upper - lower)
    lines = relu_relaxation(lower, upper, torch.tensor([slope], dtype=torch.float64))
    assert (lines.lower_slope * points + lines.lower_shift <= points.relu() + 1e-9).all()
    assert (lines.upper_slope * points + lines.upper_shift >= points.relu() - 1e-9).all()


def test_relu_in_closed_form() -> None:
    lower, upper = torch.tensor([-1.0, -3.0, 1.0, -2.0]).double(), torch.tensor([3.0, 1.0, 2.0, -1.0]).double()
    lines = relu_relaxation(lower, upper)
    # The chord is rounded up, so that it reaches u; where the sign is known it is exact.
    assert lines.upper_slope.tolist() == pytest.approx([0.75, 0.25, 1, 0], rel=1e-14)
    assert lines.upper_shift.tolist() == pytest.approx([0.75, 0.75, 0, 0], rel=1e-14)
    assert lines.upper_slope.tolist()[2:] == [1, 0]
    assert (lines.upper_slope * (upper - lower) >= upper)[:2].all()
    assert lines.lower_slope.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "pool",
    [
        MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False),
        MaxPool((3, 3), (2, 2), (1, 1), (1, 1), False),
        MaxPool((3, 2), (2, 1), (1, 0), (1, 1), True),
        MaxPool((2, 2), (1, 1), (0, 0), (2, 2), False),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_max_pooling_never_leaves_its_lines(pool: MaxPool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=generator)
    radius = torch.rand(2, 3, 7, 6, dtype=torch.float64, generator=generator) * (0.05 if seed else 1.0)
    value = pool.forward([centre])
    rows = torch.randn(2, 4, *value.shape[1:], dtype=torch.float64, generator=generator)
    (back,), constant = pool.transpose_lower(rows, [(centre - radius, centre + radius)], [centre.shape[1:]])
    for _ in range(60):
        x = centre + radius * (2 * torch.rand(centre.shape, dtype=torch.float64, generator=generator) - 1).sign()
        exact = torch.einsum("nrchw,nchw->nr", rows, pool.forward([x]))
        assert (torch.einsum("nrchw,nchw->nr", back, x) + constant <= exact + 1e-9).all()
        low, high = pool.interval([(centre - radius, centre + radius)])
        assert ((low <= pool.forward([x])) & (pool.forward([x]) <= high)).all()


def test_max_pooling_of_a_point_is_exact() -> None:
    pool = MaxPool((3, 3), (2, 2), (1, 1), (1, 1), False)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    value = pool.forward([x])
    rows = torch.randn(1, 5, *value.shape[1:], dtype=torch.float64)
    (back,), constant = pool.transpose_lower(rows, [(x, x)], [x.shape[1:]])
    exact = torch.einsum("nrchw,nchw->nr", rows, value)
    torch.testing.assert_close(torch.einsum("nrchw,nchw->nr", back, x) + constant, exact)
    assert F.max_pool2d(x, 3, 2, 1).shape == value.shape


def test_products_never_leave_their_planes() -> None:
    generator = torch.Generator().manual_seed(0)
    product = Product()
    gate, plane = (torch.randn(2, 3, *size, dtype=torch.float64, generator=generator) for size in ((1, 1), (4, 4)))
    rows = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=generator)
    boxes = [(gate - 0.5, gate + 0.5), (plane - 0.3, plane + 0.3)]
    (first, second), constant = product.transpose_lower(rows, boxes, [gate.shape[1:], plane.shape[1:]])
    low, high = product.interval(boxes)
    for _ in range(100):
        x = gate + 0.5 * (2 * torch.rand(gate.shape, dtype=torch.float64, generator=generator) - 1).sign()
        y = plane + 0.3 * (2 * torch.rand(plane.shape, dtype=torch.float64, generator=generator) - 1)
        exact = torch.einsum("nrchw,nchw->nr", rows, x * y)
        found = torch.einsum("nrchw,nchw->nr", first, x) + torch.einsum("nrchw,nchw->nr", second, y) + constant
        assert (found <= exact + 1e-9).all()
        assert ((low <= x * y) & (x * y <= high)).all()


@given(
    one=ends,
    two=ends,
    # Of the pairs, 9.8 and 5 is one whose quotient, times β, exceeds the threshold by rounding.
    cut=st.tuples(st.floats(0.5, 3), st.floats(-3, 3)) | st.sampled_from([(9.8, 5.0), (17.7, 3.0), (1.0, 0.17)]),
    near=st.none() | st.tuples(st.integers(-3, 3), st.integers(0, 6)),
)
@settings(max_examples=300, deadline=None)
def test_the_jump_at_the_cut_off_of_softplus_is_covered(
    one: float, two: float, cut: tuple[float, float], near: tuple[int, int] | None
) -> None:
    """Of boxes of any width, and of those that end a few numbers of float64 from the jump; only rounding is forgiven."""
    beta, threshold = cut
    activation = activations.softplus(beta, threshold)

    def moved(steps: int) -> float:
        found = threshold / beta
        for _ in range(abs(steps)):
            found = math.nextafter(found, math.copysign(math.inf, steps))
        return found

    box = (one, two) if near is None else (moved(near[0]), moved(near[0] + near[1]))
    lower, upper = (torch.tensor([end], dtype=torch.float64) for end in sorted(box))
    edge = torch.tensor([moved(steps) for steps in range(-6, 7)], dtype=torch.float64).clamp(lower, upper)
    inside = lower + torch.linspace(0, 1, 501, dtype=torch.float64) * (upper - lower)
    points = torch.cat([inside.clamp(lower, upper), edge])
    values = F.softplus(points, beta, threshold)
    lines, (low, high) = activation.lines(lower, upper), activation.interval([(lower, upper)])
    rounding = 1e-14 * (1 + points.abs().max().item())
    assert (lines.lower_slope * points + lines.lower_shift <= values + rounding).all()
    assert (lines.upper_slope * points + lines.upper_shift >= values - rounding).all()
    assert low.item() <= values.min().item()
    assert high.item() >= values.max().item()
    least, most = activation.slopes(lower, upper)
    steps, rises = points[: len(inside)].diff(), values[: len(inside)].diff()
    secants = (rises / steps)[steps > 1e-7]
    assert (secants >= least - 1e-6).all()
    assert (secants <= most + 1e-6).all()
    if near is None and min(abs(lower.item() - moved(0)), abs(upper.item() - moved(0))) > 1e-9:
        assert low.item() == pytest.approx(values.min().item(), abs=1e-9)
        assert high.item() == pytest.approx(values.max().item(), abs=1e-9)
