"""Convolutions and concatenations with a double backward of their own, against PyTorch's in float64."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from certood.scores import Energy
from certood.train.double_backward import ClosedForms
from certood.train.objectives.energy import EnergyMargin
from certood.train.penalty import GradientPenalty, gradient_term
from certood.train.step import TrainingStep

Function = Callable[..., Tensor]


def random(*shape: int, seed: int = 0, kind: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(kind)


def gradients(function: Function, inputs: list[Tensor], within: AbstractContextManager[Any]) -> list[Tensor]:
    """The gradients of all inputs of ‖∂(Σ sin y)/∂x‖² + Σ cos y, x being the first input: what a gradient term asks for."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    with within:
        y = function(*leaves)
    (slope,) = torch.autograd.grad(y.sin().sum(), leaves[0], create_graph=True)
    total = slope.square().sum() + y.cos().sum()
    return list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))


def assert_alike(function: Function, inputs: list[Tensor]) -> None:
    with ClosedForms():
        assert torch.equal(function(*inputs), function(*[value.clone().requires_grad_() for value in inputs]))
    pairs = zip(gradients(function, inputs, ClosedForms()), gradients(function, inputs, nullcontext()), strict=True)
    for own, theirs in pairs:
        torch.testing.assert_close(own, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("convolution", "x", "weight", "options"),
    [
        (F.conv2d, (2, 4, 5, 6), (3, 4, 3, 3), {}),
        (F.conv2d, (2, 4, 5, 6), (6, 2, 3, 2), {"stride": 2, "padding": (2, 1), "groups": 2}),
        (F.conv2d, (2, 4, 7, 9), (4, 1, 2, 3), {"stride": (3, 2), "padding": 1, "dilation": (1, 2), "groups": 4}),
        (F.conv2d, (2, 3, 5, 5), (4, 3, 1, 1), {"stride": (2,)}),
        (F.conv2d, (2, 3, 5, 5), (4, 3, 3, 1), {"padding": "same"}),
        (F.conv2d, (3, 5, 5), (4, 3, 2, 2), {}),
        (F.conv1d, (2, 3, 8), (4, 3, 3), {"stride": 2, "padding": 1}),
        (F.conv3d, (2, 2, 3, 4, 4), (3, 2, 2, 3, 2), {"padding": (0, 1, 1)}),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_have_the_gradients_of_pytorchs(
    convolution: Function, x: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any], bias: bool
) -> None:
    """The first by PyTorch's kernels, the second by formulas here; also for arguments that are left to PyTorch."""
    inputs = [random(*x), random(*weight, seed=1), *([random(weight[0], seed=2)] if bias else [])]
    assert_alike(lambda *given: convolution(*given, **options), inputs)


def test_the_gradient_of_a_gradient_norm_is_the_slope_of_that_norm() -> None:
    """Central differences in the weights, without PyTorch's double backward."""
    x, weight = random(2, 2, 4, 4), random(3, 2, 3, 3, seed=1)

    def norm(weight: Tensor, *, closed: bool) -> Tensor:
        entered = x.clone().requires_grad_()
        with ClosedForms() if closed else nullcontext():
            y = F.conv2d(entered, weight, padding=1)
        (slope,) = torch.autograd.grad(y.tanh().sum(), entered, create_graph=True)
        return slope.norm()

    leaf = weight.clone().requires_grad_()
    (found,) = torch.autograd.grad(norm(leaf, closed=True), leaf)
    for index in range(0, weight.numel(), 7):
        step = torch.zeros_like(weight)
        step.view(-1)[index] = 1e-5
        expected = (norm(weight + step, closed=False) - norm(weight - step, closed=False)) / 2e-5
        assert found.view(-1)[index].item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("change", [nn.ReLU(inplace=True), lambda y: y.mul_(2)])
def test_what_follows_may_change_a_convolution_in_place(change: Function) -> None:
    assert_alike(lambda x, weight: change(F.conv2d(x, weight)), [random(2, 3, 4, 4), random(4, 3, 2, 2, seed=1)])


def test_weights_that_are_not_trained_are_no_affair_of_the_double_backward() -> None:
    x, weight = random(2, 3, 4, 4).requires_grad_(), random(4, 3, 2, 2, seed=1)
    with ClosedForms():
        y = F.conv2d(x, weight)
    (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    (own,) = torch.autograd.grad(slope.square().sum(), x)
    (slope,) = torch.autograd.grad(F.conv2d(x, weight).sin().sum(), x, create_graph=True)
    torch.testing.assert_close(own, torch.autograd.grad(slope.square().sum(), x)[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, weight: F.conv2d(F.conv2d(x, weight), F.conv2d(x, weight)[:, :, :2, :2]),
        lambda x, weight: F.conv2d(x, weight, bias=x.mean((0, 2, 3))[:1].square().expand(4)),
        lambda x, weight: torch.autograd.grad(F.conv2d(x, weight).sum(), weight, create_graph=True)[0] * x.mean(),
        lambda x, weight: torch.autograd.grad(F.conv2d(x, weight).exp().sum(), x, create_graph=True)[0],
        lambda x, weight: torch.cat(torch.autograd.grad(torch.cat([x, x.exp()]).square().sum(), x, create_graph=True)),
    ],
)
def test_weights_that_depend_on_the_images_and_gradients_in_a_forward_are_differentiated(function: Function) -> None:
    """Of the sum as well, whose gradient is a constant: PyTorch would not complain there of a history that is lost."""
    inputs = [random(4, 3, 4, 4), random(4, 3, 2, 2, seed=1)]

    def linear(within: AbstractContextManager[Any]) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in inputs]
        with within:
            y = function(*leaves)
        (slope,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), leaves, allow_unused=True, materialize_grads=True))

    for found in (linear, lambda within: gradients(function, inputs, within)):
        for own, theirs in zip(found(ClosedForms()), found(nullcontext()), strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-10, atol=1e-10)


def test_complex_numbers_kinds_that_differ_and_odd_shapes_are_pytorchs_affair() -> None:
    x, weight = random(2, 3, 4, 4).requires_grad_(), random(4, 3, 2, 2, seed=1)
    with ClosedForms():
        assert F.conv2d(x.to(torch.complex128), weight.to(torch.complex128)).is_complex()
        with pytest.raises(RuntimeError):
            F.conv2d(x, weight.float())
        with pytest.raises(RuntimeError):
            F.conv1d(x, weight)
        assert torch.equal(F.conv2d(x, weight, stride=torch.tensor(2)), F.conv2d(x.detach(), weight, stride=2))


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_bfloat16_a_bottleneck_is_differentiated_twice(layout: torch.memory_format) -> None:
    """A size at which PyTorch 2.15's own double backward divides by zero in one thread, and ends the process."""
    x, weight = random(64, 24, 32, 32), random(48, 24, 1, 1, seed=1) / 5
    exact = gradients(F.conv2d, [x, weight], ClosedForms())
    within = ExitStack()
    within.enter_context(torch.autocast("cpu", torch.bfloat16))
    within.enter_context(ClosedForms())
    with one_thread():
        short = gradients(F.conv2d, [value.float().to(memory_format=layout) for value in (x, weight)], within)
    for found, expected in zip(short, exact, strict=True):
        assert found.dtype == torch.float32
        assert (found.double() - expected).norm() < 0.02 * expected.norm()


class Recorder(TorchDispatchMode):
    """Which gradients each convolution's backward was asked for, and how large the kernels of convolutions were."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[tuple[bool, ...]] = []
        self.kernels: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.wanted.append(tuple(args[-1]))
        if func is torch.ops.aten.convolution.default:
            self.kernels.add(tuple(args[1].shape[2:]))
        return func(*args, **(kwargs or {}))


def test_a_pass_to_the_images_computes_no_gradient_of_the_weights() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Conv2d(3, 1, 2)).double()
    x = random(2, 2, 6, 6).requires_grad_()
    with ClosedForms():
        y = network(x)
    with Recorder() as first:
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert first.wanted == [(True, False, False)] * 2
    with Recorder() as second:
        (slope.square().sum() + y.sum()).backward()
    assert (False, True, True) in second.wanted
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("own", "kernels"), [(True, {(3, 3)}), (False, {(3, 3), (8, 8)})])
def test_no_kernel_of_a_training_step_is_as_large_as_the_plane(own: bool, kernels: set[tuple[int, ...]]) -> None:
    """As one is in PyTorch's own double backward, which is tried beside it."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 3))
    images = random(4, 1, 8, 8, kind=torch.float32)
    with Recorder() as seen:
        if own:
            step = TrainingStep(network, EnergyMargin(0.1, 1e9, -1e9), GradientPenalty(0.1))
            total = step(images[:2], torch.tensor([0, 1]), images[2:]).total
        else:
            entered = images.clone().requires_grad_()
            scores = Energy()(network(entered))
            total = gradient_term(GradientPenalty(0.1), network, Energy(), entered, scores, torch.ones(4), {})
        total.backward()
    assert seen.kernels == kernels


@pytest.mark.parametrize("dim", [1, -1, 0])
def test_concatenations_have_the_gradients_of_pytorchs(dim: int) -> None:
    for count in (1, 2, 3):
        parts = [random(2, 3, 4, 2, seed=seed) for seed in range(count)]
        assert_alike(lambda *given: torch.cat(given, dim), parts)
        assert_alike(lambda *given: torch.concatenate([*given, random(2, 3, 4, 2, seed=9)], axis=dim), parts)
        assert_alike(lambda *given: torch.cat([given[0], given[0].square(), *given], dim), parts)


def test_concatenations_of_other_kinds_are_pytorchs() -> None:
    x = random(2, 3).requires_grad_()
    with ClosedForms():
        assert torch.equal(torch.cat([x, torch.ones(2, 3)]), torch.cat([x, torch.ones(2, 3, dtype=torch.float64)]))
        assert torch.equal(torch.cat((torch.zeros(0, dtype=torch.float64), x)), x)
        assert torch.cat([x.detach()]).grad_fn is None
        with pytest.raises((RuntimeError, ValueError)):
            torch.cat([])
        with pytest.raises(RuntimeError, match="must match"):
            torch.cat([x, x[:, :2]])
    (slope,) = torch.autograd.grad(torch.cat([x, x.square()]).square().sum(), x, create_graph=True)
    torch.autograd.grad(slope.sum(), x)


def test_a_dense_networks_second_derivative_is_in_the_layout_of_its_planes() -> None:
    """PyTorch's own gives parts in the plain layout, beside which every kernel of the others is slow."""
    x, other = (random(2, 4, 3, 3, seed=s).to(memory_format=torch.channels_last).requires_grad_() for s in (0, 1))
    with ClosedForms():
        y = torch.cat([x, other], 1)
    direction = torch.ones_like(y).requires_grad_()
    slopes = torch.autograd.grad(y, [x, other], direction, create_graph=True)
    (found,) = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), direction)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, 2 * direction.detach())
