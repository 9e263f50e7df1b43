"""Batch normalisation with a double backward of its own: values, running statistics and both gradients are PyTorch's."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from certood.errors import CertoodError
from certood.models import build_model
from certood.scores import Energy
from certood.train.double_backward import ClosedForms, batch_norm
from certood.train.objectives.energy import EnergyMargin
from certood.train.penalty import GradientPenalty, gradient_term
from certood.train.step import TrainingStep


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d, (5, 3)),
        (nn.BatchNorm1d, (4, 2, 3)),
        (nn.BatchNorm2d, (3, 3, 2, 2)),
        (nn.BatchNorm3d, (3, 2, 2, 1, 2)),
    ],
)
def test_both_gradients_are_those_of_the_value(layer: type[nn.Module], shape: tuple[int, ...]) -> None:
    """Of input, weight (one is 0) and bias, against differences of PyTorch's values in float64."""
    part = layer(shape[1]).double()
    weight, bias = random(shape[1], seed=1), random(shape[1], seed=2)
    weight[0] = 0
    inputs = [tensor.requires_grad_() for tensor in (random(*shape) + 3, weight, bias)]

    def value(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        found: Tensor = functional_call(part, {"weight": weight, "bias": bias}, (x,))
        return found

    with ClosedForms():
        assert gradcheck(value, inputs)
        assert gradgradcheck(value, inputs)


def test_planes_combined_a_few_images_at_a_time_are_those_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    x, g, u = (random(5, 3, 4, 4, seed=seed) for seed in range(3))
    part = nn.BatchNorm2d(3).double()

    def second() -> Tensor:
        entered = x.clone().requires_grad_()
        with ClosedForms():
            y = part(entered)
        (d,) = torch.autograd.grad(y, entered, g, create_graph=True)
        return torch.autograd.grad(d, entered, u)[0]

    whole = second()
    for numbers in (1, 2 * 48, 3 * 48 + 1):
        monkeypatch.setattr(batch_norm, "CACHED", numbers)
        assert torch.equal(second(), whole)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_values_and_running_statistics_are_pytorchs(momentum: float | None) -> None:
    own = nn.BatchNorm2d(3, momentum=momentum).double()
    theirs = copy.deepcopy(own)
    for seed in range(3):
        x = random(4, 3, 5, 5, seed=seed).requires_grad_()
        with ClosedForms():
            found = own(x)
        assert torch.equal(found, theirs(x))
    assert all(torch.equal(one, other) for one, other in zip(own.buffers(), theirs.buffers(), strict=True))
    own.eval()
    theirs.eval()
    with ClosedForms():
        found = own(x)
    assert torch.equal(found, theirs(x))


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gradient_of_a_step_is_pytorchs(channels_last: bool) -> None:
    torch.manual_seed(0)
    shape = (3, 8, 8)
    model = build_model("resnet20", num_classes=4, input_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3).double().train()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model)
    images = torch.rand(6, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2])
    step = TrainingStep(model, EnergyMargin(0.0, 1e9, -1e9), GradientPenalty(0.3))
    step(images[:3], labels, images[3:]).total.backward()

    entered = images.clone().requires_grad_()
    logits = plain(entered)
    scores, shares = Energy()(logits), torch.full((6,), 1 / 3, dtype=torch.float64)
    term = gradient_term(GradientPenalty(0.3), plain, Energy(), entered, scores, shares, {})
    (nn.functional.cross_entropy(logits[:3], labels) + 0.3 * term).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-11)


def test_in_bfloat16_the_gradient_is_near_that_in_float64() -> None:
    """As near as PyTorch's own in that precision, whose double backward rounds as much."""
    x, g, u = (random(8, 4, 6, 6, seed=seed) for seed in range(3))

    def second(kind: torch.dtype, *, closed: bool) -> Tensor:
        part = nn.BatchNorm2d(4).to(torch.float64 if kind == torch.float64 else torch.float32)
        entered = x.to(kind).requires_grad_()
        with ClosedForms() if closed else nullcontext():
            y = part(entered)
        (d,) = torch.autograd.grad(y, entered, g.to(kind), create_graph=True)
        (found,) = torch.autograd.grad(d, entered, u.to(kind))
        return found.double()

    exact = second(torch.float64, closed=False)
    torch.testing.assert_close(second(torch.float64, closed=True), exact)
    own, theirs = ((second(torch.bfloat16, closed=closed) - exact).norm() / exact.norm() for closed in (True, False))
    assert own < 0.02
    assert own < 2 * theirs


class Activated(nn.BatchNorm2d):
    """As timm's networks have it: a normalisation with more in its forward."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).tanh()


@pytest.mark.parametrize("kind", [Activated, lambda count: nn.BatchNorm2d(count, affine=False), "own forward"])
def test_a_normalisation_that_is_more_or_less_than_one_stays_what_it_is(kind: Any) -> None:
    part = nn.BatchNorm2d(3) if kind == "own forward" else kind(3)
    part = part.double()
    if kind == "own forward":
        plain = part.forward
        part.forward = lambda x: plain(x).sin()
    found = []
    for closed in (True, False):
        x = random(4, 3, 2, 2).requires_grad_()
        with ClosedForms() if closed else nullcontext():
            y = part(x)
        (slope,) = torch.autograd.grad(y.exp().sum(), x, create_graph=True)
        found.append((y, *torch.autograd.grad(slope.square().sum(), [x, *part.parameters()])))
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs)
    assert ("forward" in vars(part)) is (kind == "own forward")


def test_what_batch_normalisation_refuses_is_refused() -> None:
    part = nn.BatchNorm1d(3).double()
    with ClosedForms(), pytest.raises(ValueError, match="more than 1 value per channel"):
        part(random(1, 3).requires_grad_())
    x = random(4, 3).requires_grad_()
    with ClosedForms():
        y = part(x)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), x, retain_graph=True)
    assert second.shape == x.shape
    with pytest.raises(RuntimeError, match="a third time"):
        torch.autograd.grad(slope.square().sum(), x, create_graph=True)


def test_a_finite_difference_refuses_a_normalisation_that_is_more_than_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), Activated(3), nn.Flatten(), nn.Linear(12, 2)).train()
    step = TrainingStep(network, EnergyMargin(0.0, 1e9, -1e9), GradientPenalty(0.3, "finite-difference"))
    images = random(4, 1, 4, 4).float()
    with pytest.raises(CertoodError, match="what a Activated adds to batch normalisation"):
        step(images[:2], torch.tensor([0, 1]), images[2:])
