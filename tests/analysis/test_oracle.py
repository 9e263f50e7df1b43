"""Our bounds beside those of auto_LiRPA, an independent engine."""

import importlib.util
import math
from functools import cache

import pytest
import torch
from torch import nn

from certood.analysis.bounds import Graph, LpBall, bound, capture
from certood.analysis.bounds.engines.auto_lirpa import AutoLirpa
from certood.errors import CannotCertify, CertoodError
from certood.models.classifier import Normalise
from certood.scores import Energy
from tests.analysis.networks import images
from tests.quick import first_is_quick

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(importlib.util.find_spec("auto_LiRPA") is None, reason="auto_LiRPA is not installed (uv sync)"),
]


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.out = nn.BatchNorm2d(6), nn.Linear(6 * 64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x) + x)
        logits: torch.Tensor = self.out(x.flatten(1))
        return logits


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    ),
    "residual": Shortcut,
    "average pooling": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)
    ),
    "normalised": lambda: nn.Sequential(
        Normalise([0.4, 0.5], [0.3, 0.2]), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4)
    ),
}  # fmt: skip


@cache
def captured(name: str) -> Graph:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    model(torch.rand(32, 2, 8, 8))
    return capture(model.eval(), images(1))


@pytest.mark.parametrize("eps", [0.003, 0.03])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_bounds_or_tighter(name: str, eps: float) -> None:
    graph, ball = captured(name), LpBall(images(3), eps)
    rows = torch.eye(4).double().expand(3, -1, -1)
    for method in ("interval", "crown-ibp", "crown"):
        own, other = bound(graph, ball, method), AutoLirpa(graph, ball, method).rows(rows)
        if method == "interval":
            torch.testing.assert_close(own.lower, other.lower, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(own.upper, other.upper, rtol=1e-4, atol=1e-4)
        else:
            # Ours also take the box where it is tighter; nothing may be tighter than both.
            simpler = bound(graph, ball, "crown-ibp" if method == "crown" else "interval")
            expected = other.intersect(simpler)
            torch.testing.assert_close(own.lower, expected.lower, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(own.upper, expected.upper, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", first_is_quick(NETWORKS))
def test_optimised_slopes_are_not_looser(name: str) -> None:
    graph, ball = captured(name), LpBall(images(2), 0.03)
    own = bound(graph, ball, "alpha-crown", iterations=20)
    other = AutoLirpa(graph, ball, "alpha-crown", iterations=20).rows(torch.eye(4).double().expand(2, -1, -1))
    assert own.width.mean() <= 1.005 * other.width.mean()


def test_a_dilated_convolution_is_that_of_the_kernel_with_zeros() -> None:
    """auto_LiRPA's patches ignore dilation (its bounds there are not sound), so it is asked about the equal 5×5 kernel."""
    torch.manual_seed(0)
    dilated = nn.Conv2d(6, 4, 3, dilation=2)
    spread = nn.Conv2d(6, 4, 5)
    spread.weight.data.zero_()
    spread.weight.data[:, :, ::2, ::2] = dilated.weight.data
    spread.bias = dilated.bias
    first, last = nn.Conv2d(2, 6, 3, 1, 1), nn.Linear(64, 4)
    x = images(3)
    ball, rows = LpBall(x, 0.03), torch.eye(4).double().expand(3, -1, -1)
    own, other = (
        capture(nn.Sequential(first, nn.ReLU(), conv, nn.ReLU(), nn.Flatten(), last).eval(), x)
        for conv in (dilated, spread)
    )
    torch.testing.assert_close(
        bound(own, ball, "crown").lower, AutoLirpa(other, ball, "crown").rows(rows).lower, rtol=1e-4, atol=1e-4
    )


def test_it_can_be_chosen_as_the_engine() -> None:
    graph, ball = captured("conv"), LpBall(images(), 0.02)
    own, other = (bound(graph, ball, "crown", score=Energy(), engine=engine) for engine in ("certood", "auto-lirpa"))
    torch.testing.assert_close(own.lower, other.lower, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(own.upper, other.upper, rtol=1e-3, atol=1e-3)
    assert "auto_LiRPA" in other.method


def test_what_it_would_get_wrong_is_refused() -> None:
    graph = captured("mlp")
    with pytest.raises(CannotCertify, match="not sound for l1 and l2"):
        bound(graph, LpBall(images(), 0.1, 2), engine="auto-lirpa")
    with pytest.raises(CertoodError, match="unknown engine 'lirpa'"):
        bound(graph, LpBall(images(), 0.1), engine="lirpa")
    with pytest.raises(CertoodError, match="unknown method"):
        AutoLirpa(graph, LpBall(images(), 0.1, math.inf), "beta-crown")
