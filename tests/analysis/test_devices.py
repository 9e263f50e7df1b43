"""Bounds are computed on the device of the images: no tensor is made without one."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from certood.analysis.bounds import (
    METHODS,
    Captured,
    DifferentiableBounds,
    Graph,
    LpBall,
    bound,
    capture,
    export,
    gradient_bound,
    logit_gradient_bound,
)
from certood.analysis.certification import certify, question_of
from certood.analysis.evidence.smoothing import MedianSmoothing
from certood.analysis.settings import Settings
from certood.detector import Detector
from certood.errors import DeviceError
from certood.scores import MSP, Energy
from tests.quick import first_is_quick

FACTORIES = {
    *(
        "zeros",
        "ones",
        "full",
        "empty",
        "eye",
        "arange",
        "linspace",
        "logspace",
        "rand",
        "randn",
        "randint",
        "randperm",
    ),
    *("tensor", "as_tensor", "from_numpy", "scalar_tensor", "empty_strided", "tril_indices", "triu_indices", "normal"),
}


class WithDevice(TorchFunctionMode):
    """Collects calls that make a tensor with axes and name no device. Scalars go together with tensors of any device."""

    def __init__(self) -> None:
        super().__init__()
        self.without: list[str] = []

    def __torch_function__(  # type: ignore[no-untyped-def]
        self,
        function: Callable[..., Any],
        types,
        arguments: tuple[Any, ...] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call, and look at what came out."""
        found = function(*arguments, **(keywords or {}))
        name = getattr(function, "__name__", "")
        if name in FACTORIES and function is getattr(torch, name, None) and not (keywords or {}).get("device"):
            from_tensor = any(isinstance(argument, Tensor) for argument in arguments)
            if isinstance(found, Tensor) and found.ndim and not from_tensor:
                self.without.append(f"torch.{name}{tuple(found.shape)}")
        return found


class Residual(nn.Module):
    """Convolutions with a stride, a pool, a sum of branches, and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.strided, self.last = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x))
        x = torch.nn.functional.max_pool2d(torch.sigmoid(self.strided(x)), 2)
        return self.last(torch.cat([x, x.clamp(0.3, 0.6)], 1).flatten(1)[:, :16])


@functools.cache
def graph_and_images() -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    network = Residual().double().eval()
    images = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    return capture(network, images), images


def test_the_check_notices_a_tensor_without_a_device() -> None:
    """The oracle itself: a tensor with axes and no device is reported, a scalar and one with a device are not."""
    with WithDevice() as mode:
        torch.zeros(3)
        torch.zeros(3, device="cpu")
        torch.tensor(1.0)
        torch.arange(4)
    assert mode.without == ["torch.zeros(3,)", "torch.arange(4,)"]


@pytest.mark.parametrize("method", first_is_quick(["crown", *(method for method in METHODS if method != "crown")]))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_bound_makes_a_tensor_without_a_device(method: str, dtype: torch.dtype) -> None:
    """On a graphics processor such a tensor would lie beside the others."""
    graph, images = graph_and_images()
    rows = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    with WithDevice() as mode:
        for norm in (torch.inf, 2, 1):
            ball = LpBall(images, 0.02, norm)
            bound(graph, ball, method, dtype=dtype, iterations=2)
        # What follows does not depend on the norm.
        bound(graph, LpBall(images, 0.02), method, dtype=dtype, iterations=2, specification=(rows, None))
        for score in (Energy(), MSP()):
            bound(graph, LpBall(images, 0.02), method, dtype=dtype, iterations=2, score=score)
    assert not mode.without


@pytest.mark.slow
def test_no_gradient_bound_makes_a_tensor_without_a_device() -> None:
    """Nor branch and bound, nor bounds in training."""
    graph, images = graph_and_images()
    rows = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    ball, training = LpBall(images, 0.02), DifferentiableBounds(Residual().eval(), images[:1].float())
    with WithDevice() as mode:
        gradient_bound(graph, ball, score=Energy())
        logit_gradient_bound(graph, ball, 1)
        bound(graph, ball, specification=(rows, None), parts=3)
        for score in (Energy(), MSP()):
            bound(graph, LpBall(images[:1], 0.02), score=score, parts=3)
        training(images.float(), 0.01)
    assert not mode.without


@functools.cache
def small_detector() -> tuple[Detector, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).float()
    images = torch.rand(6, 1, 6, 6)
    bare = Detector(network, Energy(), None, "made here", (1, 6, 6), ("a", "b", "c"), (0.0,), (1.0,))
    return replace(bare, threshold=float(bare.scores(images).detach().median())), images


@pytest.mark.parametrize(
    "settings",
    first_is_quick(
        [
            Settings(eps=(0.02, 0.01), parts=2, attack_steps=4, restarts=2, samples=4),
            Settings(eps=(0.05,), norm=2, method="alpha-crown", iterations=2, attack_steps=4, samples=4),
            Settings(eps=(0.2,), norm=1, timeout=0.1, dtype="float32", attack_steps=4, samples=4),
            Settings(eps=(0.1,), norm=2, method="smoothing", smoothing=MedianSmoothing(samples=20)),
        ]
    ),
    ids=["parts", "alpha-crown l2", "timeout l1", "smoothing"],
)
def test_certifying_makes_no_tensor_without_a_device(settings: Settings) -> None:
    """Attacks, evidence and records included, of ID and of OOD images, by every score."""
    detector, images = small_detector()
    for score in (Energy(), MSP()):
        scored = replace(detector, score=score).calibrated(images, 0.5)
        question = question_of(scored, settings.norm, smoothed=settings.smoothed)
        with WithDevice() as mode:
            for kind in ("id", "ood"):
                certify(scored, images[:2], kind=kind, settings=settings, question=question)
        assert not mode.without


def test_a_detector_moves_and_a_device_without_float64_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, images = small_detector()
    assert detector.to("cpu") is detector
    assert detector.device.type == "cpu"
    with pytest.raises(DeviceError, match=r"this machine has \d+ CUDA devices"):
        detector.to("cuda:99")
    made = torch.zeros

    def without_float64(*shape: Any, **keywords: Any) -> Tensor:
        if keywords.get("dtype") == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        found: Tensor = made(*shape, **keywords)
        return found

    monkeypatch.setattr(torch, "zeros", without_float64)
    with pytest.raises(DeviceError, match="float64, which device 'cpu' does not have; use cpu or cuda"):
        certify(detector, images, settings=Settings())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no second device")
def test_certificates_on_a_second_device_are_those_of_the_first() -> None:
    """Up to rounding: attacks draw the same numbers there."""
    detector, images = small_detector()
    settings = Settings(eps=(0.02,), parts=4, attack_steps=4)
    here, there = (certify(one, images, settings=settings) for one in (detector, detector.to("cuda")))
    for own, other in zip(here, there, strict=True):
        assert own.violations == other.violations == 0
        assert own.score == pytest.approx(other.score, rel=1e-9)
        assert own.values["radius_certified"] == pytest.approx(other.values["radius_certified"], rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no second device")
@pytest.mark.parametrize("method", METHODS)
def test_bounds_on_a_second_device_are_those_of_the_first(method: str) -> None:
    """Up to rounding, which each covers."""
    graph, images = graph_and_images()
    here = bound(graph, LpBall(images, 0.02), method)
    assert graph.module is not None
    moved = {name: value.cuda() for name, value in graph.module.state_dict().items()}
    there = Captured(export(graph.module, images)).bind(moved)
    other = bound(there, LpBall(images.cuda(), 0.02), method)
    assert other.lower.is_cuda
    torch.testing.assert_close(other.lower.cpu(), here.lower, rtol=1e-9, atol=1e-9)
