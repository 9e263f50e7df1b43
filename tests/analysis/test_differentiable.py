"""Bounds for training: their gradients against hand-written loops and finite differences, their values against the engine."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.analysis.bounds import DifferentiableBounds, LpBall, bound, capture
from certood.analysis.bounds.capturing import Captured
from certood.analysis.bounds.differentiable import METHODS, check_differentiable
from certood.analysis.bounds.exporting import export
from certood.errors import CannotCertify, CertoodError, UnsupportedOperation
from certood.models import build_model
from tests.quick import every_is_quick

EPS = 0.07


def images(count: int = 3, side: int = 6) -> Tensor:
    return torch.rand(count, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)
    ).double()


def by_hand(model: nn.Sequential, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Intervals of convolutions, matrices and ReLU in centre and radius."""
    for part in model:
        if isinstance(part, nn.Flatten):
            lower, upper = lower.flatten(1), upper.flatten(1)
            continue
        if isinstance(part, nn.ReLU):
            lower, upper = lower.relu(), upper.relu()
            continue
        centre, radius = part((lower + upper) / 2), (upper - lower) / 2
        if isinstance(part, nn.Conv2d):
            radius = F.conv2d(radius, part.weight.abs(), None, part.stride, part.padding)  # type: ignore[arg-type]
        else:
            radius = F.linear(radius, part.weight.abs())
        lower, upper = centre - radius, centre + radius
    return lower, upper


def gradients(model: nn.Module, bounds: tuple[Tensor, Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(part.shape, dtype=torch.float64, generator=generator) for part in bounds]
    value = sum((weight * part).sum() for weight, part in zip(weights, bounds, strict=True))
    return list(torch.autograd.grad(value, list(model.parameters())))  # type: ignore[arg-type]


def test_gradients_of_intervals_equal_those_of_a_hand_written_loop() -> None:
    model, x = convolutional(), images()
    found = DifferentiableBounds(model, x[:1])(x, EPS)
    expected = by_hand(model, (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1))
    torch.testing.assert_close((found.lower, found.upper), expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(model, (found.lower, found.upper)), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_bounds_are_those_of_the_present_parameters() -> None:
    model, x = convolutional(), images()
    bounds = DifferentiableBounds(model, x[:1])
    before = bounds(x, EPS).lower
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[5].bias.add_(1)
    after = bounds(x, EPS).lower
    torch.testing.assert_close(after, by_hand(model, (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1))[0])
    assert (after - before).abs().max() > 0.1


class Residual(nn.Module):
    """Branches that are added and joined, two sizes of pooling, and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.gate, self.last = nn.Conv2d(4, 4, 1), nn.Linear(8 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x - 0.5 * self.second(x.relu())
        x = x * self.gate(x).sigmoid()
        x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 2)], 1)
        return self.last(x.flatten(1))  # type: ignore[no-any-return]


def activated(activation: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), activation, nn.Flatten(), nn.Linear(18, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "batch-norm": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
    ).eval(),
    "normalised": lambda: build_model(
        "small-cnn",
        num_classes=3,
        input_shape=(2, 6, 6),
        mean=[0.4, 0.5],
        std=[0.2, 0.3],
        options={"width": 2, "hidden": 4},
    ),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 5), nn.GELU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    ),
} | {
    type(activation).__name__: activated(activation)
    for activation in (
        nn.ReLU(),
        nn.LeakyReLU(0.2),
        nn.ELU(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.Softplus(),
        nn.GELU(),
        nn.SiLU(),
        nn.Hardtanh(-0.1, 0.2),
    )
}


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    return NETWORKS[name]().double()


@pytest.mark.parametrize("name", every_is_quick(4, NETWORKS))
def test_gradients_equal_finite_differences(name: str) -> None:
    network, x = made(name), images(2)
    captured = Captured(export(network, x[:1]))
    names = [name for name, value in network.named_parameters() if name in captured.exported.constants]
    for method in METHODS:

        def logit_bounds(*values: Tensor, method: str = method) -> tuple[Tensor, ...]:
            graph = captured.bind(dict(zip(names, values, strict=True)))
            return tuple(METHODS[method](graph, x, EPS, math.inf))

        parameters = tuple(network.get_parameter(name).detach().clone().requires_grad_() for name in names)
        assert torch.autograd.gradcheck(logit_bounds, parameters, eps=1e-7, atol=1e-5, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("name", every_is_quick(4, NETWORKS))
def test_bounds_are_the_engines(name: str) -> None:
    network, x = made(name), images(2)
    graph = capture(network, x[:1])
    bounds = DifferentiableBounds(network, x[:1])
    for method in METHODS:
        bounds.method = method
        for norm, eps in ((math.inf, EPS), (2, 0.3), (1, 0.3)):
            found = bounds(x, eps, norm)
            expected = bound(graph, LpBall(x, eps, norm), method)
            slack = 1e-9 * (1 + expected.upper.abs().max())
            # The engine bounds what is affine in the image by the dual norm as well, and is tighter for l2 and l1.
            assert (found.lower <= expected.lower + slack).all(), (method, norm)
            assert (found.upper >= expected.upper - slack).all(), (method, norm)
            if norm == math.inf:
                torch.testing.assert_close(found.lower, expected.lower, rtol=1e-7, atol=1e-9)
                torch.testing.assert_close(found.upper, expected.upper, rtol=1e-7, atol=1e-9)
            tighter = bound(graph, LpBall(x, eps, norm), "crown")
            assert (found.lower <= tighter.lower + slack).all(), (method, norm)


def test_what_is_refused_does_not_depend_on_whether_gradients_are_on() -> None:
    model, x = convolutional(), images()
    with torch.no_grad():
        bounds = DifferentiableBounds(model, x[:1])
    assert bounds(x, EPS).lower.requires_grad


def test_linear_bounds_see_the_ball_and_not_its_box() -> None:
    model, x = convolutional(), images()
    box, ball = (DifferentiableBounds(model, x[:1], "crown-ibp")(x, 0.1, norm).width.mean() for norm in (math.inf, 2))
    assert ball < 0.7 * box


def test_batch_normalisation_in_train_mode_is_refused_with_the_remedy() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2))
    bounds = DifferentiableBounds(model, images(1).float())
    with pytest.raises(
        CannotCertify, match=r"1 is a batch normalisation in train mode.*fixed statistics .*model.fixed_st"
    ):
        bounds(images().float(), EPS)
    model.eval()
    assert bounds(images().float(), EPS).lower.dtype == torch.float32


def test_under_autocast_bounds_and_gradients_stay_finite() -> None:
    model = convolutional().float()
    bounds = DifferentiableBounds(model, images(1).float())
    full = bounds(images().float(), EPS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = bounds(images().float(), EPS)
    torch.testing.assert_close(mixed.lower.float(), full.lower, rtol=0.1, atol=0.05)
    mixed.width.sum().backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in model.parameters())


def test_what_cannot_be_differentiated_is_named_with_its_line() -> None:
    class Unsupported(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sort(1).values[:, :3]

    with pytest.raises(UnsupportedOperation, match=r"sort.*test_differentiable.py:\d+ in forward: .*sort"):
        DifferentiableBounds(Unsupported(), images(1))
    with pytest.raises(
        CertoodError, match="unknown method 'crown' of differentiable bounds; expected interval or crown-ibp"
    ):
        DifferentiableBounds(convolutional(), images(1), "crown")


def test_an_operation_that_stops_gradients_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from certood.analysis.bounds.operations.linear import Linear

    plain = Linear.training_interval

    def detached(self: Linear, inputs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        lower, upper = plain(self, inputs)
        return lower.detach(), upper

    monkeypatch.setattr(Linear, "training_interval", detached)
    with pytest.raises(CannotCertify, match="no gradient passes through the bounds of linear"):
        check_differentiable(Captured(export(convolutional(), images(1))))
