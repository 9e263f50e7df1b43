"""Batch normalisation with a double backward of its own: values, running statistics and both gradients are PyTorch's."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from certood.models import build_model
from certood.scores import Energy
from certood.train.double_backward import batch_norm
from certood.train.double_backward.batch_norm import closed_form_normalisation
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

    with closed_form_normalisation(part):
        assert gradcheck(value, inputs)
        assert gradgradcheck(value, inputs)


def test_planes_combined_a_few_images_at_a_time_are_those_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    x, g, u = (random(5, 3, 4, 4, seed=seed) for seed in range(3))
    part = nn.BatchNorm2d(3).double()

    def second() -> Tensor:
        entered = x.clone().requires_grad_()
        with closed_form_normalisation(part):
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
        x = random(4, 3, 5, 5, seed=seed)
        with closed_form_normalisation(own):
            found = own(x)
        assert torch.equal(found, theirs(x))
    assert all(torch.equal(one, other) for one, other in zip(own.buffers(), theirs.buffers(), strict=True))
    assert "forward" not in vars(own)
    own.eval()
    with closed_form_normalisation(own):
        assert "forward" not in vars(own)


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
        changed = [part] if closed else []
        with closed_form_normalisation(nn.ModuleList(changed)):
            y = part(entered)
        (d,) = torch.autograd.grad(y, entered, g.to(kind), create_graph=True)
        (found,) = torch.autograd.grad(d, entered, u.to(kind))
        return found.double()

    exact = second(torch.float64, closed=False)
    torch.testing.assert_close(second(torch.float64, closed=True), exact)
    own, theirs = ((second(torch.bfloat16, closed=closed) - exact).norm() / exact.norm() for closed in (True, False))
    assert own < 0.02
    assert own < 2 * theirs
