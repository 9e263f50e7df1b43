"""Rows that are windows: whatever is done to them gives what is done to whole planes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.analysis.bounds import LpBall, analyse, capture, gradient_bound
from certood.analysis.bounds.linear import analysis as of_rows
from certood.analysis.bounds.linear import backward
from certood.analysis.bounds.linear.optimised import Ascent, optimised_least
from certood.analysis.bounds.linear.relaxing import CentredRelaxation, relaxed
from certood.analysis.bounds.linear.rows import magnitude, summed
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.base import in_precision
from certood.analysis.bounds.operations.convolution import Convolution
from certood.analysis.bounds.operations.relaxations import relu_relaxation
from certood.scores import Energy
from tests.analysis.networks import NORMS, RADII, captured, images, sampled
from tests.quick import first_is_quick

GEOMETRIES = [(1, 1, 3), (2, 1, 3), (2, 0, 1), (2, 0, 2), (2, 2, 5), (3, 1, 4), (4, 3, 3), (2, 3, 3), (1, 0, 5)]


def convolution(channels: int, outputs: int, geometry: tuple[int, int, int], dtype: torch.dtype) -> Convolution:
    stride, padding, kernel = geometry
    weight = torch.randn(outputs, channels, kernel, kernel, generator=torch.Generator().manual_seed(kernel)).double()
    found = in_precision(Convolution(weight, None, (stride, stride), (padding, padding), (1, 1), 1), dtype)
    assert isinstance(found, Convolution)
    return found


def backwards(operation: Convolution, rows: Tensor, shape: torch.Size) -> Tensor:
    """The transpose of whole planes, by autograd in float64."""
    x = torch.zeros(rows.shape[0] * rows.shape[1], *shape, dtype=torch.float64, requires_grad=True)
    value = F.conv2d(x, operation.weight.double(), None, operation.stride, operation.padding)
    (back,) = torch.autograd.grad(value, x, rows.double().flatten(0, 1))
    return back.unflatten(0, rows.shape[:2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [12, 24])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_they_go_back_through_convolutions_as_whole_planes_do(
    geometry: tuple[int, int, int], size: int, dtype: torch.dtype
) -> None:
    first = convolution(2, 3, geometry, dtype)
    middle = first.forward([torch.zeros(1, 2, size, size, dtype=dtype)]).shape[1:]
    second = convolution(3, 4, (1, 1, 3), dtype)
    last = second.forward([torch.zeros(1, *middle, dtype=dtype)]).shape[1:]
    neurons = torch.randint(last.numel(), (2, 7), generator=torch.Generator().manual_seed(0))
    exact = F.one_hot(neurons, last.numel()).double().unflatten(2, last)
    box = torch.randn(2, *middle, generator=torch.Generator().manual_seed(1)).double()
    relaxation = CentredRelaxation.about(relu_relaxation(box - 0.5, box + 0.5), box, box.relu())

    rows = second.unit_rows(neurons, [middle], last) or second.transpose_windows(
        Windows.units(neurons, last, dtype), [middle]
    )[0]  # fmt: skip
    assert isinstance(rows, Windows)
    there = backwards(second, exact, middle)
    torch.testing.assert_close(rows.dense().double(), there, rtol=1e-5, atol=1e-5)
    plane = torch.rand(2, *middle, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close(magnitude(rows, plane).double(), magnitude(there, plane), rtol=1e-5, atol=1e-5)

    for both in (False, True):
        before, constant = relaxed(rows, relaxation.to(dtype), both=both)
        expected, shift = relaxed(there, relaxation, both=both)
        assert isinstance(before, Windows)
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(constant.double(), shift, rtol=1e-5, atol=1e-5)
        (back,) = first.transpose_windows(before, [torch.Size((2, size, size))])
        assert isinstance(back, Windows)
        whole = backwards(first, expected, torch.Size((2, size, size)))
        torch.testing.assert_close(back.dense().double(), whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(back.channels(1, 1).dense().double(), whole[:, :, 1:], rtol=1e-5, atol=1e-5)
        for other in (back, Windows.whole(whole.to(dtype)), back.unphased()):
            total = summed(back, other)
            assert isinstance(total, Windows)
            torch.testing.assert_close(total.dense().double(), 2 * whole, rtol=1e-5, atol=1e-5)
        image = torch.rand(2, 2, size, size, generator=torch.Generator().manual_seed(3)).double()
        torch.testing.assert_close(magnitude(back, image).double(), magnitude(whole, image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", first_is_quick([torch.float64, torch.float32]))
@pytest.mark.parametrize("name", first_is_quick(["conv", "residual", "depthwise", "mlp"]))
def test_chunks_of_rows_give_what_all_at_once_give(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, x = captured(name, trained=True), images()
    for norm in NORMS:
        ball = LpBall(x, RADII[norm], norm)
        whole = analyse(graph, ball, "crown", dtype=dtype)
        # In float64 alone.
        gradients = gradient_bound(graph, ball, score=Energy()) if dtype == torch.float64 else None
        with monkeypatch.context() as patch:
            patch.setattr(of_rows, "CHUNK_BYTES", 20_000)
            parts = analyse(graph, ball, "crown", dtype=dtype)
            others = gradient_bound(graph, ball, score=Energy()) if gradients is not None else None
        for node, (lower, upper) in whole.boxes.items():
            torch.testing.assert_close(parts.boxes[node][0], lower, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(parts.boxes[node][1], upper, rtol=1e-6, atol=1e-6)
        if gradients is not None and others is not None:
            torch.testing.assert_close(others.lower, gradients.lower)
            torch.testing.assert_close(others.dual_norm, gradients.dual_norm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["mlp", "elu", "elementwise first"])
def test_an_operation_and_the_matrix_before_it_at_once_give_what_one_by_one_give(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, x = captured(name, trained=True), images(3)
    unit = torch.eye(graph.outputs, dtype=torch.float64).expand(len(x), -1, -1)
    close = 1e-12 if dtype == torch.float64 else 1e-5
    for norm in NORMS:
        ball = LpBall(x, RADII[norm], norm)
        monkeypatch.setattr(backward, "MANY_ROWS", 10**9)
        single = analyse(graph, ball, "crown", dtype=dtype)
        expected = single.rows(unit), single.lower_rows(unit)
        monkeypatch.setattr(backward, "MANY_ROWS", 1)
        double = analyse(graph, ball, "crown", dtype=dtype)
        found = double.rows(unit), double.lower_rows(unit)
        assert double.backward._compact
        for node, (lower, upper) in single.boxes.items():
            torch.testing.assert_close(double.boxes[node][0], lower, rtol=close, atol=close)
            torch.testing.assert_close(double.boxes[node][1], upper, rtol=close, atol=close)
        torch.testing.assert_close(found[0].lower, expected[0].lower, rtol=close, atol=close)
        torch.testing.assert_close(found[0].upper, expected[0].upper, rtol=close, atol=close)
        torch.testing.assert_close(found[1], expected[1], rtol=close, atol=close)


def stages() -> nn.Module:
    """Convolutions whose windows grow over an image of 16 × 16, with one of stride 2 into few channels."""
    torch.manual_seed(2)
    convolutions = nn.Conv2d(2, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)
    return nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).double().eval()


@pytest.mark.parametrize("dtype", first_is_quick([torch.float64, torch.float32]))
@pytest.mark.parametrize("name", ["conv", "residual", "stages"])
def test_slopes_of_windows_are_optimised_as_those_of_whole_planes(name: str, dtype: torch.dtype) -> None:
    """And what they give holds at points of the ball."""
    x = images() if name != "stages" else images().repeat(1, 1, 2, 2)
    graph = capture(stages(), x) if name == "stages" else captured(name, trained=True)
    close = 1e-9 if dtype == torch.float64 else 1e-4
    for norm in NORMS:
        analysis = analyse(graph, LpBall(x, RADII[norm], norm), "crown-ibp", dtype=dtype)
        values = [graph.values(point) for point in sampled(x, RADII[norm], norm, 40)]
        for node, of in enumerate(graph.nodes):
            if not isinstance(of.operation, Convolution) or node < 3:
                continue
            neurons = torch.arange(0, of.shape.numel(), 7).expand(len(x), -1)
            rows = Windows.units(neurons, of.shape, dtype)
            with torch.no_grad():
                plain = analysis.least_change(node, rows)
                least = optimised_least(analysis.backward, node, rows, Ascent(6))
                whole = optimised_least(analysis.backward, node, rows.dense(), Ascent(6))
                shared = optimised_least(analysis.backward, node, rows, Ascent(6, shared=True))
                shared_whole = optimised_least(analysis.backward, node, rows.dense(), Ascent(6, shared=True))
            torch.testing.assert_close(least, whole, rtol=close, atol=close)
            # Sums of gradients over rows are rounded otherwise, and where a slope ends at 0 that shows.
            torch.testing.assert_close(shared, shared_whole, rtol=1e-3, atol=1e-3)
            for found in (least, shared):
                assert (found >= plain - close).all()
                assert (found > plain + close).any()
            assert (least - shared).mean() > -close
            centre = analysis.references[node].flatten(1).gather(1, neurons)
            for value in values:
                reached = value[node].flatten(1).gather(1, neurons) - centre
                assert (reached >= torch.maximum(least, shared) - 1e-9).all()
