"""Bounds of logits and scores: captured networks, soundness under samples and attacks, closed forms, degenerate cases."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from certood.analysis.bounds import (
    METHODS,
    Bounds,
    LpBall,
    analyse,
    bound,
    capture,
    gradient_bound,
    methods,
    score_bounds,
)
from certood.errors import CannotCertify, CertoodError, UnsupportedOperation
from certood.models import build_model
from certood.models.classifier import Normalise
from certood.scores import MSP, SCORES, AbsentClass, Energy, KLUniform, MaxLogit, Score, score_by_name
from tests.analysis.networks import NETWORKS, NORMS, RADII, SHAPE, attacked, captured, images, network, sampled
from tests.quick import first_is_quick

# Networks that differ from another in their activation alone are bounded trained: their weights are larger than random ones.
LIKE_MLP = ("leaky", "elu", "sigmoid", "tanh", "softplus", "gelu", "silu", "hardtanh", "relu6", "hardswish")


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in NETWORKS if name not in LIKE_MLP),
        *(pytest.param(name, True, marks=pytest.mark.slow if place % 4 else ()) for place, name in enumerate(NETWORKS)),
    ],
)
def test_no_point_of_the_ball_leaves_the_bounds(name: str, trained: bool) -> None:
    graph, x = captured(name, trained), images()
    model = graph.module
    # Trained networks are bounded over l_inf balls, random ones over the others: the cross product takes minutes.
    for norm, eps in RADII.items():
        if trained != (norm == math.inf):
            continue
        points = sampled(x, eps, norm, 200)
        logits = model(points.flatten(0, 1)).view(200, len(x), 4).detach()
        scores = {score: score_by_name(score)(logits) for score in SCORES.names()}
        highest, lowest = attacked(model, x, eps, norm), -attacked(lambda y: -model(y), x, eps, norm)
        widths = []
        for method in METHODS:
            analysis = analyse(graph, LpBall(x, eps, norm), method, iterations=2)
            found = analysis.rows(torch.eye(4).double().expand(len(x), 4, 4))
            assert (found.lower <= torch.minimum(logits.amin(0), lowest) + 1e-9).all(), (norm, method)
            assert (found.upper >= torch.maximum(logits.amax(0), highest) - 1e-9).all(), (norm, method)
            widths.append(found.width)
            for score, values in scores.items():
                if method == "alpha-crown" and score != "energy":
                    continue
                got = score_bounds(analysis, score_by_name(score))
                assert (got.lower <= values.amin(0) + 1e-9).all(), (norm, method, score)
                assert (got.upper >= values.amax(0) - 1e-9).all(), (norm, method, score)
        for looser, tighter in itertools.pairwise(widths):
            assert (tighter <= looser + 1e-9).all()


@pytest.mark.parametrize("norm", [2, 1])
def test_a_normalisation_layer_first_is_sound_for_l1_and_l2_balls(norm: float) -> None:
    """The case in which a well-known engine gives intervals of no width: an elementwise operation on an l1 or l2 ball."""
    model = nn.Sequential(Normalise([0.4, 0.5], [0.3, 0.2]), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).double()
    x, eps = images(), RADII[norm]
    graph, worst = capture(model, x), attacked(model, x, eps, norm)
    values = model(sampled(x, eps, norm, 2000).flatten(0, 1)).view(2000, len(x), 3)
    for method in METHODS:
        found = bound(graph, LpBall(x, eps, norm), method)
        assert (found.lower <= values.amin(0) + 1e-9).all(), method
        assert (found.upper >= torch.maximum(values.amax(0), worst) - 1e-9).all(), method


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_is_bounded_by_its_dual_norm_exactly(norm: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Normalise([0.4, 0.5], [0.3, 0.2]), nn.Flatten(), nn.Linear(128, 3)).double()
    x = 0.5 + 0.02 * (images() - 0.5)
    weight = model[2].weight.view(3, *SHAPE) / torch.tensor([0.3, 0.2]).double().view(2, 1, 1)
    dual = {math.inf: 1, 2: 2, 1: math.inf}[norm]
    reach = 0.1 * weight.flatten(1).norm(dual, dim=1)
    graph = capture(model, x)
    for method in METHODS:
        found = bound(graph, LpBall(x, 0.1, norm), method)
        # Inside the pixel range nothing is clipped, so that the value ± ε‖w‖_q is exact; "interval" boxes are looser for p < ∞.
        if method == "interval" and norm != math.inf:
            assert (found.upper >= model(x) + reach - 1e-9).all()
            continue
        torch.testing.assert_close(found.upper, model(x) + reach, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.lower, model(x) - reach, rtol=1e-6, atol=1e-7)


def test_the_pixel_range_clips_the_ball() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 1)).double()
    model[1].weight.data.fill_(1.0)
    model[1].bias.data.zero_()
    found = bound(capture(model, images()), LpBall(torch.zeros(1, *SHAPE), 0.5))
    assert found.lower.item() == pytest.approx(0, abs=1e-9)
    assert found.upper.item() == pytest.approx(64)


def test_a_tiny_network_in_closed_form() -> None:
    """f = relu(x₁ + x₂ − 1) − relu(x₁ − x₂) on [0, 1]²: intervals give [−1, 1], CROWN by hand [−1, 1] and no more."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    model[1].weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
    model[1].bias.data = torch.tensor([-1.0, 0.0]).double()
    model[3].weight.data = torch.tensor([[1.0, -1.0]]).double()
    model[3].bias.data.zero_()
    x = torch.full((1, 1, 1, 2), 0.5).double()
    graph = capture(model, x)
    interval = bound(graph, LpBall(x, 0.5), "interval")
    assert (interval.lower.item(), interval.upper.item()) == pytest.approx((-1, 1))
    # Both neurons lie in [−1, 1], so the chord is (z + 1)/2 and, u = −l, the lower slope 0:
    # upper: (x₁ + x₂ − 1 + 1)/2 − 0 ≤ 1; lower: 0 − (x₁ − x₂ + 1)/2 ≥ −1.
    crown = bound(graph, LpBall(x, 0.5), "crown")
    assert crown.upper.item() == pytest.approx(1)
    assert crown.lower.item() == pytest.approx(-1)
    # On the smaller ball [0.4, 0.6]² the neurons lie in [−0.2, 0.2]: upper (x₁ + x₂ − 1 + 0.2)/2 ≤ 0.2.
    small = bound(graph, LpBall(x, 0.1), "crown")
    assert small.upper.item() == pytest.approx(0.2)
    assert small.lower.item() == pytest.approx(-0.2)


@pytest.mark.parametrize("method", METHODS)
def test_a_ball_of_no_size_gives_the_value(method: str) -> None:
    for name in ("mlp", "gelu", "residual", "gated", "depthwise"):
        graph, x = captured(name), images(1)
        model = graph.module
        found = bound(graph, LpBall(x, 0.0), method, iterations=1)
        torch.testing.assert_close(found.lower, model(x), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.upper, model(x), rtol=1e-7, atol=1e-7)
        for score in ("energy",) if method == "alpha-crown" else SCORES.names():
            got = bound(graph, LpBall(x, 0.0), method, score=score_by_name(score), iterations=1)
            expected = score_by_name(score)(model(x))
            torch.testing.assert_close(got.lower, expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(got.upper, expected, rtol=1e-6, atol=1e-6)


def test_every_image_may_have_its_own_radius() -> None:
    graph, x = captured("conv"), images()
    together = bound(graph, LpBall(x, torch.tensor([0.01, 0.02], dtype=torch.float64)))
    for index, eps in enumerate((0.01, 0.02)):
        alone = bound(graph, LpBall(x[index : index + 1], eps))
        torch.testing.assert_close(together.lower[index], alone.lower[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "leaky"])
def test_more_iterations_never_hurt_and_some_help(name: str) -> None:
    graph, x = captured(name, trained=True), images()
    plain = bound(graph, LpBall(x, 0.08), "crown")
    few, many = (bound(graph, LpBall(x, 0.08), "alpha-crown", iterations=count) for count in (3, 12))
    assert (few.width <= plain.width + 1e-12).all()
    assert many.width.mean() < 0.995 * plain.width.mean()


@pytest.mark.slow
def test_shared_slopes_tighten_all_layers_and_no_point_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between CROWN with the slopes of the logits' rows optimised alone, and slopes for every row of every layer."""
    graph, x, found = captured("residual", trained=True), images(), {}
    for name, most in (("logits", (0, 0)), ("shared", (0, 10**9)), ("own", (10**9, 10**9))):
        monkeypatch.setattr(methods, "OWN_SLOPES", most[0])
        monkeypatch.setattr(methods, "SHARED_SLOPES", most[1])
        found[name] = bound(graph, LpBall(x, 0.05), "alpha-crown", iterations=8)
    assert graph.module is not None
    values = graph.module(sampled(x, 0.05, math.inf, 2000).flatten(0, 1)).view(2000, len(x), 4)
    assert (found["shared"].lower <= values.amin(0)).all()
    assert (found["shared"].upper >= values.amax(0)).all()
    logits, shared, own = (found[name].width.mean().item() for name in ("logits", "shared", "own"))
    assert own < shared < logits


def test_a_small_memory_budget_changes_nothing_but_the_chunks() -> None:
    graph, x = captured("residual"), images()
    ample = bound(graph, LpBall(x, 0.02), "crown")
    tight = bound(graph, LpBall(x, 0.02), "crown", max_memory=8 * 8 * 4 * 64 * 2 * 2.5)
    torch.testing.assert_close(ample.lower, tight.lower, rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_into_memory_is_replaced_and_named() -> None:
    graph, x = captured("residual"), images()
    row = 8 * 8 * 4 * 64
    one_image = bound(graph, LpBall(x, 0.02), "crown", max_memory=1.2 * row)
    torch.testing.assert_close(one_image.lower, bound(graph, LpBall(x, 0.02), "crown").lower, rtol=1e-12, atol=1e-12)
    none = bound(graph, LpBall(x, 0.02), "crown", max_memory=0.9 * row)
    assert none.method == "interval (crown exceeded the memory budget)"
    torch.testing.assert_close(none.lower, bound(graph, LpBall(x, 0.02), "interval").lower)
    plain = bound(graph, LpBall(x, 0.02), "alpha-crown", max_memory=3 * row)
    assert plain.method.startswith("crown (alpha-crown exceeded the memory budget)")


@pytest.mark.parametrize("score", SCORES.names())
def test_score_bounds_are_never_looser_than_the_box(score: str) -> None:
    graph, x = captured("mlp", trained=True), images()
    analysis = analyse(graph, LpBall(x, 0.05), "crown")
    box = analysis.rows(torch.eye(4).double().expand(len(x), 4, 4))
    found = score_bounds(analysis, score_by_name(score))
    match score:
        case "energy":
            loose = Bounds(-torch.logsumexp(box.upper, 1), -torch.logsumexp(box.lower, 1))
        case "max-logit":
            loose = Bounds(-box.upper.amax(1), -box.lower.amax(1))
        case _:
            loose = composed(box, score_by_name(score))
    assert (found.lower >= loose.lower - 1e-9).all()
    assert (found.upper <= loose.upper + 1e-9).all()
    assert (found.width < loose.width).any() or score == "max-logit"


def composed(box: Bounds, score: Score) -> Bounds:
    """Intervals through exp, sum, division and log, one after the other."""
    low, high = box.lower.exp(), box.upper.exp()
    p_low = low / (low + high.sum(1, keepdim=True) - high)
    p_high = high / (high + low.sum(1, keepdim=True) - low)
    if isinstance(score, MSP):
        return Bounds(-p_high.amax(1), -p_low.amax(1))
    if isinstance(score, AbsentClass):
        return Bounds(p_low[:, -1], p_high[:, -1])
    if isinstance(score, KLUniform):
        return Bounds(*(math.log(4) + part.log().mean(1) for part in (p_low, p_high)))
    ends = torch.stack([torch.special.entr(p_low), torch.special.entr(p_high)])
    peak = torch.where((p_low < 1 / math.e) & (p_high > 1 / math.e), 1 / math.e, ends.amax(0))
    return Bounds(ends.amin(0).sum(1), peak.sum(1))


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_huge_logits_do_not_overflow(size: float) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).double()
    model[1].weight.data *= size
    model[1].bias.data = torch.tensor([size, -size, size, 0.0]).double()
    x = images()
    graph, logits = capture(model, x), model(sampled(x, 0.05, math.inf, 300).flatten(0, 1))
    for score in map(score_by_name, SCORES.names()):
        found, values = bound(graph, LpBall(x, 0.05), "crown", score=score), score(logits).view(300, len(x))
        assert found.lower.isfinite().all(), score
        assert found.upper.isfinite().all(), score
        assert (found.lower <= values.amin(0) + 1e-9 * size).all(), score
        assert (found.upper >= values.amax(0) - 1e-9 * size).all(), score


def test_a_temperature_scales_the_logits() -> None:
    graph, x = captured("mlp"), images()
    values = Energy(3.0)(graph(sampled(x, 0.03, math.inf, 300).flatten(0, 1))).view(300, len(x))
    found = bound(graph, LpBall(x, 0.03), score=Energy(3.0))
    assert (found.lower <= values.amin(0)).all()
    assert (found.upper >= values.amax(0)).all()
    exact = bound(graph, LpBall(x, 0.0), score=Energy(3.0))
    torch.testing.assert_close(exact.lower, Energy(3.0)(graph(x)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "change",
    first_is_quick(["dead", "always on", "zero weights", "twin classes", "constant images", "huge radius"]),
)
def test_degenerate_cases_stay_sound_and_finite(change: str) -> None:
    model = network("mlp")
    x, eps = images(), 0.05
    first, last = model[2], model[6]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    match change:
        case "dead":
            first.bias.data.fill_(-100.0)
        case "always on":
            first.bias.data.fill_(100.0)
        case "zero weights":
            first.weight.data.zero_()
        case "twin classes":
            last.weight.data[1], last.bias.data[1] = last.weight.data[0], last.bias.data[0]
        case "constant images":
            x = torch.ones_like(x)
        case _:
            eps = 1.0
    graph = capture(model, x)
    logits = model(sampled(x, eps, math.inf, 300).flatten(0, 1)).detach()
    for method in METHODS:
        for score in (None, *map(score_by_name, ("energy",) if method == "alpha-crown" else SCORES.names())):
            values = (logits if score is None else score(logits)).view(300, len(x), -1)
            found = bound(graph, LpBall(x, eps), method, score=score, iterations=1)
            assert found.lower.isfinite().all()
            assert (found.lower.view(len(x), -1) <= values.amin(0) + 1e-9).all()
            assert (found.upper.view(len(x), -1) >= values.amax(0) - 1e-9).all()


def test_where_boxes_alone_are_tighter_it_is_said_and_used() -> None:
    graph, x = captured("tanh", trained=True), images()
    found = [bound(graph, LpBall(x, 0.3), method) for method in ("crown-ibp", "crown")]
    assert (found[1].width <= found[0].width + 1e-9).all()
    assert found[1].method == "crown" or "crown-ibp was tighter in" in found[1].method


def test_specifications_are_rows_of_the_logits() -> None:
    graph, x = captured("conv"), images()
    margin = torch.tensor([[1.0, -1.0, 0.0, 0.0]])
    found = bound(graph, LpBall(x, 0.02), specification=(margin, torch.tensor([5.0])))
    logits = graph(sampled(x, 0.02, math.inf, 300).flatten(0, 1)).view(300, len(x), 4)
    values = logits[..., 0] - logits[..., 1] + 5
    assert (found.lower[:, 0] <= values.amin(0)).all()
    assert (found.upper[:, 0] >= values.amax(0)).all()
    apart = bound(graph, LpBall(x, 0.02))
    assert (found.upper[:, 0] <= apart.upper[:, 0] - apart.lower[:, 1] + 5 + 1e-9).all()
    with pytest.raises(CertoodError, match="expected C of shape"):
        bound(graph, LpBall(x, 0.02), specification=(torch.ones(2, 3), None))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"specification": (torch.ones(0, 4), None)}, "expected C of shape"),
        ({"specification": (torch.ones(9, 1, 4), None)}, "expected C of 3 images or of one"),
        ({"specification": (torch.ones(2, 4), torch.ones(3))}, "c of as many rows as C"),
        ({"iterations": -1, "method": "alpha-crown"}, "expected iterations >= 0"),
        ({"parts": 0}, "at least one part"),
        ({"timeout": 0.0}, "timeout > 0"),
        ({"timeout": math.nan}, "timeout > 0"),
    ],
)
def test_what_cannot_be_bounded_is_one_error(given: dict[str, Any], message: str) -> None:
    x = images().repeat(2, 1, 1, 1)[:3]
    with pytest.raises(CertoodError, match=message):
        bound(captured("conv"), LpBall(x, 0.02), **given)
    with pytest.raises(CertoodError, match=r"expected one eps or 3, one an image, got shape \(2,\)"):
        LpBall(x, torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("name", first_is_quick(["small-cnn", "small-mlp", "resnet18"]))
def test_our_networks_are_captured_for_any_batch(name: str) -> None:
    options: dict[str, int] = {"wrn-40-2": {"depth": 10}, "densenet-bc-100-12": {"depth": 10}}.get(name, {})
    model = build_model(name, num_classes=5, input_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.2] * 3, options=options)
    graph = capture(model, torch.rand(1, 3, 32, 32))
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    assert model.training, "the user's module is left as it is"
    torch.testing.assert_close(graph(x), model.double().eval()(x), rtol=1e-9, atol=1e-9)


# With few layers of each kind; whole networks are captured by benchmarks/networks.py.
def resnet() -> nn.Module:
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)


def mobilenet() -> nn.Module:
    return models.MobileNetV2(4, 0.25, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]])


def efficientnet() -> nn.Module:
    block = models.efficientnet.MBConvConfig
    return models.EfficientNet([block(1, 3, 1, 8, 8, 1), block(6, 5, 2, 8, 16, 2)], 0.2, num_classes=4)


def shufflenet() -> nn.Module:
    return models.ShuffleNetV2([2, 1, 1], [8, 8, 16, 16, 24], num_classes=4)


def alexnet() -> nn.Module:
    return models.AlexNet(num_classes=4)


def squeezenet() -> nn.Module:
    return models.SqueezeNet(num_classes=4)


@pytest.mark.slow
@pytest.mark.parametrize("build", [resnet, mobilenet, efficientnet, shufflenet, alexnet, squeezenet])
def test_torchvisions_networks_are_captured(build: Callable[[], nn.Module]) -> None:
    model = build().eval()
    graph = capture(model, torch.rand(1, 3, 64, 64))
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(graph(x), model.double()(x), rtol=1e-9, atol=1e-9)
    box = bound(graph, LpBall(x, 1e-4), "interval")
    assert ((box.lower <= graph(x)) & (graph(x) <= box.upper)).all()


class Sorted(nn.Module):
    """A network with an operation that has no bound here."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x.flatten(1), dim=1).values[:, :3]


def test_an_unsupported_operation_is_named_with_its_line() -> None:
    with pytest.raises(
        UnsupportedOperation, match=r"aten.sort.*test_bounds.py:\d+ in forward: return torch.sort"
    ) as caught:
        capture(Sorted(), images())
    assert caught.value.exit_code == 3


def test_weights_that_are_not_finite_are_refused() -> None:
    model = network("mlp")
    model[2].weight.data[0, 0] = math.nan
    with pytest.raises(CannotCertify, match=r"not a number: 2.weight"):
        capture(model, images())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LpBall(images(), 0.1, 3), "expected norm inf, 2 or 1, got 3"),
        (lambda: LpBall(images(), -0.1), "expected 0 <= eps <= 1"),
        (lambda: LpBall(images(), 1.5), "expected 0 <= eps <= 1"),
        (lambda: LpBall(255 * images(), 0.1), "divide 0–255 images by 255"),
        (lambda: LpBall(images() * math.nan, 0.1), "not finite"),
        (lambda: LpBall(images()[0], 0.1), "expected images of shape"),
        (lambda: analyse(captured("mlp"), LpBall(images(), 0.1), "crwn"), "unknown method 'crwn'"),
        (lambda: analyse(captured("mlp"), LpBall(torch.rand(1, 1, 8, 8), 0.1)), "the network takes images"),
    ],
)
def test_bad_questions_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(CertoodError, match=message):
        make()


def test_batch_normalisation_and_scaling_fold_into_the_layer_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        Normalise([0.1] * 4, [0.7] * 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    for _ in range(3):
        model(3 * torch.rand(16, *SHAPE) + 1)
    graph = capture(model, images())
    assert [type(node.operation).__name__ for node in graph.nodes[1:]] == [
        "Convolution", "Activation", "Reshape", "Linear", "Activation", "Linear"
    ]  # fmt: skip
    torch.testing.assert_close(graph(images()), model.double().eval()(images()), rtol=1e-10, atol=1e-10)


class Shared(nn.Module):
    """What two operations read is not folded away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        logits: Tensor = self.out((torch.relu(self.norm(y)) + y).flatten(1))
        return logits


def test_what_is_read_twice_is_not_folded() -> None:
    model = Shared()
    model(torch.rand(16, *SHAPE))
    graph = capture(model, images())
    torch.testing.assert_close(graph(images()), model.double().eval()(images()), rtol=1e-10, atol=1e-10)


class OneNumber(nn.Module):
    """A network with a value that is one number per image, on the way to its output."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x))[:, None]


@pytest.mark.parametrize(
    "last",
    [
        lambda f: -torch.logsumexp(f, -1),
        lambda f: (f.sum(1) - 0.1).relu() + f[:, 0],
        lambda f: f.amax(1).sigmoid(),
        lambda f: f.mean(-1) * 2 - f[:, 0],
        lambda f: f[:, 0].tanh() * f[:, 1],
        lambda f: torch.maximum(f[:, 0], f[:, 1]).relu(),
        lambda f: torch.minimum(f.mean(1), f.amax(1)).tanh(),
        lambda f: f[:, :2].sort(1).values[:, 1],
        lambda f: f[:, :2].sort(1, descending=True).values.mean(1).square(),
        lambda f: f.logsumexp(1).tanh(),
    ],
    ids=["logsumexp", "relu", "max", "mean", "product", "maximum", "minimum", "larger", "smaller", "tanh"],
)
def test_one_number_per_image_is_bounded(last: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=generator)
    network = OneNumber(last).double()
    graph = capture(network, images)
    noise = 0.1 * torch.rand(200, *images.shape, dtype=torch.float64, generator=generator) - 0.05
    values = network((images + noise).clamp(0, 1).flatten(0, 1)).view(200, 3, 1)
    for method, dtype in itertools.product(METHODS, (torch.float64, torch.float32)):
        found = bound(graph, LpBall(images, 0.05), method, dtype=dtype, iterations=3)
        assert (values >= found.lower).all(), (method, dtype)
        assert (values <= found.upper).all(), (method, dtype)
        assert found.width.max() < 0.8, (method, dtype)
    for norm, options in ((math.inf, {"parts": 4}), (2.0, {}), (1.0, {})):
        inside = network(sampled(images, 0.05, norm, 100).flatten(0, 1)).view(100, 3, 1)
        found = bound(graph, LpBall(images, 0.05, norm), "crown", **options)
        assert (inside >= found.lower).all(), norm
        assert (inside <= found.upper).all(), norm
    points = (images + noise).clamp(0, 1).flatten(0, 1).requires_grad_()
    (slopes,) = torch.autograd.grad(network(points).sum(), points)
    steepest = slopes.flatten(1).abs().sum(1).view(200, 3).amax(0)
    assert (steepest <= gradient_bound(graph, LpBall(images, 0.05), score=MaxLogit()).dual_norm).all()
