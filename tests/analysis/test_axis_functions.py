"""Maximum, logsumexp, softmax and log-softmax: no value leaves its planes or range, no derivative its bounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certood.analysis.bounds.operations.axis import AxisFunction, LogSoftmax, LogSumExp, Maximum, Softmax

KINDS: tuple[type[AxisFunction], ...] = (Maximum, LogSumExp, LogSoftmax, Softmax)


def function(kind: type[AxisFunction], size: int) -> AxisFunction:
    return kind((0,), torch.Size(()) if kind.reduces else torch.Size((size,)))


def box(seed: int, size: int, width: float, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """A box (1, K) of random widths, some of them zero, and points of it (P, K), corners among them."""
    generator = torch.Generator().manual_seed(seed)
    middle = reach * torch.randn(1, size, generator=generator, dtype=torch.float64)
    half = width * torch.rand(1, size, generator=generator, dtype=torch.float64)
    half = half * (torch.rand(1, size, generator=generator) > 0.2)
    shares = 2 * torch.rand(300, size, generator=generator, dtype=torch.float64) - 1
    shares[:150] = shares[:150].sign()
    return middle - half, middle + half, middle + half * shares


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 7),
    width=st.sampled_from([0.0, 1e-6, 0.1, 2.0, 30.0, 2e3]),
    reach=st.sampled_from([0.0, 1.0, 50.0, 1e4]),
)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaves_its_bounds(kind: type[AxisFunction], seed: int, size: int, width: float, reach: float) -> None:
    lower, upper, points = box(seed, size, width, reach)
    own = function(kind, size)
    values = own.value(points)
    slack = 1e-12 * (1 + reach + width)
    low, high = own.extent(lower, upper)
    assert (low <= values + slack).all()
    assert (high >= values - slack).all()
    planes = own.planes(lower, upper).widened(lower, upper)
    below = torch.einsum("pk,mk->pm", points, planes.lower_slope[0]) + planes.lower_shift
    above = torch.einsum("pk,mk->pm", points, planes.upper_slope[0]) + planes.upper_shift
    assert (below <= values + slack).all()
    assert (above >= values - slack).all()
    assert below.isfinite().all()
    assert above.isfinite().all()
    least, most = own.jacobian(lower, upper)
    jacobian = torch.autograd.functional.jacobian(lambda x: own.value(x).sum(0), points[::10]).movedim(1, 0)
    assert (least[0] <= jacobian + 1e-9).all()
    assert (most[0] >= jacobian - 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_planes_close_in_on_the_tangent(kind: type[AxisFunction]) -> None:
    lower, upper, points = box(1, 5, 1e-4, 1.0)
    own = function(kind, 5)
    planes = own.planes(lower, upper).widened(lower, upper)
    for slope, shift in ((planes.lower_slope, planes.lower_shift), (planes.upper_slope, planes.upper_shift)):
        gap = torch.einsum("pk,mk->pm", points, slope[0]) + shift - own.value(points)
        assert gap.abs().max() < 1e-6


def test_rows_of_log_softmax_differ_by_the_logits_exactly() -> None:
    lower, upper, _ = box(2, 4, 3.0, 1.0)
    own = function(LogSoftmax, 4)
    rows = torch.tensor([[[1.0, -1.0, 0.0, 0.0]]], dtype=torch.float64)
    (back,), constant = own.transpose_lower(rows, [(lower, upper)], [torch.Size((4,))])
    torch.testing.assert_close(back, rows)
    assert constant.abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_several_axes_make_one_vector(kind: type[AxisFunction]) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    shape = torch.Size((3,)) if kind.reduces else torch.Size((3, 4, 5))
    own = kind((1, 2), shape)
    flat = function(kind, 20).value(x.flatten(2))
    expected = flat[..., 0] if kind.reduces else flat.view(x.shape)
    torch.testing.assert_close(own.forward([x]), expected)
