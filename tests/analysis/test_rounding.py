"""Bounds in float32: close to those in float64, and sound where rounding alone decides."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from certood.analysis.bounds import LpBall, analyse, bound, capture
from certood.analysis.bounds import ball as region
from certood.analysis.bounds.linear import rounding
from certood.analysis.bounds.operations import Linear
from certood.errors import CertoodError
from tests.analysis.networks import NETWORKS, NORMS, RADII, images, network


@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_as_tight_as_float64_up_to_rounding(name: str, method: str) -> None:
    graph, x = capture(network(name, trained=True), images()), images()
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
    for module in (rounding, region):
        monkeypatch.setattr(module, "UNIT", 0.0)
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
    here = replace(rounded, dtype=torch.float32, passages={}, losses={}, doors={})
    found, truth = here.least(5, rows, both=True), exact.least(5, rows, both=True)
    assert (found <= truth + 1e-12).all()
    # What is counted is the range of every product by itself, not that of their sum.
    inner, middle = graph.nodes[3].operation, rounded.boxes[2]
    assert isinstance(inner, Linear)
    assert (rounded.widths[3] >= (middle[1] - middle[0]) @ inner.weight.abs().T - 1e-12).all()


def test_a_point_loses_nothing() -> None:
    model, x = affine(), images(6)
    found = bound(capture(model, x), LpBall(x, 0.0), "crown", dtype=torch.float32)
    torch.testing.assert_close(found.lower, model(x).detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.upper, model(x).detach(), rtol=1e-14, atol=0)


def test_optimised_slopes_in_float32_are_sound_and_help() -> None:
    graph, x = capture(network("mlp", trained=True), images()), images()
    ball = LpBall(x, 0.08)
    plain = bound(graph, ball, "crown", dtype=torch.float32)
    exact = bound(graph, ball, "alpha-crown", iterations=10)
    rounded = bound(graph, ball, "alpha-crown", iterations=10, dtype=torch.float32)
    assert (rounded.width <= plain.width).all()
    torch.testing.assert_close(rounded.lower, exact.lower, rtol=1e-3, atol=1e-3)


def test_precisions_that_bounds_cannot_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, ball = capture(network("mlp"), images()), LpBall(images(), 0.1)
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
