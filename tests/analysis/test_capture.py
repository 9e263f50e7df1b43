"""Capturing: the graph computes what the module does, arguments are never ignored, and parameters can be bound again."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.analysis.bounds import Captured, LpBall, bound, capture, export
from certood.analysis.bounds.operations import activations
from certood.analysis.bounds.translation import TRANSLATORS
from certood.errors import CannotCertify, UnsupportedOperation
from tests.analysis.networks import NETWORKS, SHAPE, exported, images, network, sampled
from tests.quick import every_is_quick

TWO = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.5, 1.0]], dtype=torch.float64).repeat(1, 64)


class Calls(nn.Module):
    """Logits (N, 3) of whatever a function makes of the image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.function(x).flatten(1), TWO.to(x.device))


# Arguments that earlier versions dropped: each of these gave another value than the module.
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "alpha of a sum": lambda x: torch.add(x, x.transpose(2, 3).relu(), alpha=3),
    "alpha of a difference": lambda x: torch.sub(0.7 * x, x.relu(), alpha=2),
    "alpha of a reversed difference": lambda x: torch.rsub(x, x.relu(), alpha=2),
    "alpha of a reversed difference from a number": lambda x: torch.rsub(x, 0.3, alpha=2),
    "threshold of softplus": lambda x: F.softplus(4 * x - 1, beta=2.0, threshold=3.0),
    "a scalar": lambda x: 0.3 - x,
    "a scalar divisor": lambda x: x / 0.3 + 0.1,
    "keepdim": lambda x: x - x.mean((2, 3), keepdim=True),
    "ceil_mode": lambda x: F.pad(F.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False), (0, 4, 0, 4)),
}


@pytest.mark.parametrize("name", KEPT)
def test_every_argument_enters_the_value(name: str) -> None:
    graph, model = capture(Calls(KEPT[name]), images()), Calls(KEPT[name])
    torch.testing.assert_close(graph(images()), model(images()), rtol=1e-14, atol=1e-14)
    points = sampled(images(), 0.05, math.inf, 400)
    values = model(points.flatten(0, 1)).view(400, 2, 3)
    for method in ("interval", "crown"):
        found = bound(graph, LpBall(images(), 0.05), method)
        assert (found.lower <= values.amin(0) + 1e-9).all()
        assert (found.upper >= values.amax(0) - 1e-9).all()


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "integers": (lambda x: (3 * x).int() * 1.0, "cast of an activation to torch.int32"),
    "booleans": (lambda x: (x - 0.5).bool() * 1.0, "cast of an activation to torch.bool"),
    "half precision": (lambda x: x.half().double(), "cast of an activation to torch.float16"),
    "single precision": (lambda x: x.float().double(), "cast of an activation to torch.float32"),
    "floor": (lambda x: torch.div(x, 0.3, rounding_mode="floor"), "rounding_mode='floor'"),
    "trunc": (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), "rounding_mode='trunc'"),
    "dtype of a mean": (lambda x: x.mean((2,), keepdim=True, dtype=torch.float32) + x, "dtype=torch.float32"),
    "dtype of a sum": (lambda x: x.sum((2,), keepdim=True, dtype=torch.float32) + x, "dtype=torch.float32"),
    "dtype of softmax": (lambda x: x.softmax(2, dtype=torch.float32), "dtype=torch.float32"),
    "mean of the batch": (lambda x: x - x.mean(0, keepdim=True), "batch"),
    "softmax of the batch": (lambda x: x.softmax(0), "batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_value_is_refused_by_name(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(UnsupportedOperation, match=message) as caught:
        capture(Calls(function), images())
    assert "test_capture.py" in str(caught.value)


def test_an_argument_without_a_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSLATORS, "leaky_relu", lambda call: activations.leaky_relu(0.01))
    capture(Calls(F.leaky_relu), images())
    with pytest.raises(UnsupportedOperation, match=r"leaky_relu.*negative_slope=0\.2"):
        capture(Calls(lambda x: F.leaky_relu(x, 0.2)), images())


def test_a_wrong_translation_is_found_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Tensor) -> Tensor:
        return torch.tanh(x - 0.5).relu()

    monkeypatch.setitem(TRANSLATORS, "relu", lambda call: activations.leaky_relu(1e-7))
    with pytest.raises(
        CannotCertify, match=r"differs from the network by .* relu, by .*test_capture.py:\d+ in forward"
    ):
        capture(Calls(wrong), images())


def test_a_difference_far_below_that_of_float32_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSLATORS, "relu", lambda call: activations.leaky_relu(1e-7))
    with pytest.raises(CannotCertify, match="the first value that differs is that of relu"):
        capture(network("mlp"), images())


def test_tiny_logits_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights of deep networks give logits of 1e-14, which no absolute tolerance would look at."""
    tiny = Calls(lambda x: 1e-15 * torch.tanh(x - 0.5).relu())
    capture(tiny, images())
    monkeypatch.setitem(TRANSLATORS, "relu", lambda call: activations.leaky_relu(1e-3))
    with pytest.raises(CannotCertify, match="differs from the network"):
        capture(tiny, images())


class InItsPrecision(nn.Module):
    """A linear network after a function that may depend on the precision."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.last = function, nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(x.flatten(1)))


def test_what_depends_on_the_precision_is_refused() -> None:
    def scaled(x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    with pytest.raises(CannotCertify, match="in float32 differs from its copy in float64 by"):
        capture(InItsPrecision(scaled), images())
    capture(InItsPrecision(scaled).double(), images())


@pytest.mark.parametrize("function", [torch.Tensor.clamp_min, torch.add])
def test_what_depends_on_the_precision_at_black_pixels_alone_is_refused(
    function: Callable[[Tensor, float], Tensor],
) -> None:
    def logarithms(x: Tensor) -> Tensor:
        return function(x, torch.finfo(x.dtype).eps).log()

    with pytest.raises(CannotCertify, match="in float32 differs from its copy in float64 by"):
        capture(InItsPrecision(logarithms), images())


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_as_well(precision: torch.dtype) -> None:
    """Its rms_norm adds ε of float32, in which PyTorch computes it."""
    dark = (images() * 2e-3).to(precision)
    model = InItsPrecision(nn.RMSNorm(128)).to(precision)
    with torch.no_grad():
        torch.testing.assert_close(capture(model, images())(dark.double()), model(dark).double(), rtol=0.05, atol=0.02)

    def scaled(x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    with pytest.raises(CannotCertify, match=r"in b?float16 differs from its copy in float64 by"):
        capture(InItsPrecision(scaled).to(precision), images())


def test_rms_norm_has_the_step_of_the_precision_in_which_the_network_runs() -> None:
    dark = images() * 2e-4
    for model in (InItsPrecision(nn.RMSNorm(128)), InItsPrecision(nn.RMSNorm(128)).double()):
        graph = capture(model, dark)
        with torch.no_grad():
            expected = model(dark.to(model.last.weight.dtype)).double()
        torch.testing.assert_close(graph(dark), expected, rtol=1e-5, atol=1e-6)
        assert isinstance(model.function, nn.RMSNorm)
        assert model.function.eps is None
    without = InItsPrecision(lambda x: F.rms_norm(x, (128,)))
    with pytest.raises(CannotCertify, match=r"rms_norm without eps .* eps=1\.1920928955078125e-07 in the network"):
        capture(without, images())
    capture(without.double(), images())


class Counting(nn.Module):
    """A network whose value depends on how many images are asked at once."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), TWO) * x.shape[0]


def test_a_network_that_depends_on_the_size_of_the_batch_is_refused() -> None:
    with pytest.raises(CannotCertify, match="differs from the network"):
        capture(Counting(), images())


class Switching(nn.Module):
    """A network with a state in Python, which torch.export takes for a constant."""

    calls = itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), TWO) + float(next(self.calls))


def test_a_module_that_is_not_what_was_exported_is_refused() -> None:
    with pytest.raises(CannotCertify, match=r"torch.export's own program differs|cannot trace"):
        capture(Switching(), images())


@pytest.mark.parametrize("name", every_is_quick(3, NETWORKS))
def test_parameters_are_bound_again_and_again(name: str) -> None:
    captured = exported(name)
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.float64):
        model, x = network(name).to(dtype), images().to(dtype)
        tolerance = 1e-10 if dtype == torch.float64 else 2e-4
        state = {
            key: (value + 0.1 * torch.rand(value.shape, dtype=dtype, generator=generator)).detach().requires_grad_()
            for key, value in model.named_parameters()
        }
        given = captured.bind(state)
        found, expected = given(x), torch.func.functional_call(model, state, x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        if not state:
            continue
        weight = torch.rand(expected.shape, dtype=dtype, generator=generator)
        ours = torch.autograd.grad((weight * found).sum(), list(state.values()), allow_unused=True)
        theirs = torch.autograd.grad((weight * expected).sum(), list(state.values()), allow_unused=True)
        for key, one, two in zip(state, ours, theirs, strict=True):
            zero = torch.zeros_like(state[key])
            torch.testing.assert_close(
                zero if one is None else one, zero if two is None else two, rtol=tolerance, atol=50 * tolerance, msg=key
            )


def test_unknown_parameters_and_mixed_precisions_are_refused() -> None:
    captured = Captured(export(network("mlp"), images()))
    with pytest.raises(CannotCertify, match="no parameters or buffers named odd"):
        captured.bind({"odd": torch.zeros(1)})
    with pytest.raises(CannotCertify, match="one dtype"):
        captured.bind({"2.weight": torch.zeros(10, 128), "2.bias": torch.zeros(10).double()})


def test_shape_of_the_input() -> None:
    assert capture(network("mlp"), images()).nodes[0].shape == SHAPE
