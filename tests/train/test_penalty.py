"""The gradient term against closed forms, counted passes, and the two implementations against each other."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.ops import StochasticDepth

from certood.errors import CertoodError
from certood.scores import Energy, Score
from certood.train.objectives import Objective
from certood.train.objectives.energy import EnergyMargin
from certood.train.penalty import GradientPenalty, double_backward_explained, gate_shares, gradient_norms
from certood.train.step import TrainingStep


@dataclass(frozen=True)
class FirstLogit:
    """S = f₀: a score whose gradient is that of the first output."""

    name: str = "first"

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, 0]


class Linear(nn.Module):
    """f = Wx, whose gradient is the first row of W everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(12, 3, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.map(images.flatten(1))
        return logits


class Quadratic(nn.Module):
    """f₀ = a‖x‖², whose gradient is 2ax."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        first = self.a * images.flatten(1).square().sum(1)
        return torch.stack([first, torch.zeros_like(first)], 1)


@dataclass(frozen=True)
class Gates(Objective):
    """An objective of gates alone."""

    margin_in: float = 0.0
    margin_out: float = 0.0
    score: Score = FirstLogit()
    weight: float = 0.0

    def outlier_term(self, scores_in: Tensor, scores_out: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return scores_out.new_zeros(())


OPEN, CLOSED = Gates(1e9, -1e9), Gates(-1e9, 1e9)
MODES = ("exact", "finite-difference")


def images(seed: int = 0, inside: int = 4, outside: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(inside + outside, 3, 2, 2, dtype=torch.float64, generator=generator)
    return made[:inside], torch.zeros(inside, dtype=torch.int64), made[inside:]


@pytest.mark.parametrize("mode", MODES)
def test_a_linear_score_pays_the_norm_of_its_weights(mode: str) -> None:
    model = Linear()
    terms = TrainingStep(model, OPEN, GradientPenalty(1.0, mode))(*images())  # type: ignore[arg-type]
    norm = model.map.weight[0].norm()
    assert terms.gradient.item() == pytest.approx(2 * norm.item(), rel=1e-9)
    terms.gradient.backward()
    expected = torch.zeros_like(model.map.weight)
    expected[0] = 2 * (model.map.weight[0] / norm).detach()
    torch.testing.assert_close(model.map.weight.grad, expected, rtol=1e-9, atol=1e-9)


def test_a_quadratic_score_pays_twice_the_mean_distance() -> None:
    model = Quadratic()
    inside, labels, outside = images()
    terms = TrainingStep(model, OPEN, GradientPenalty(1.0))(inside, labels, outside)
    distances = inside.flatten(1).norm(dim=1).mean() + outside.flatten(1).norm(dim=1).mean()
    assert terms.gradient.item() == pytest.approx(2 * 1.5 * distances.item(), rel=1e-12)
    terms.gradient.backward()
    assert model.a.grad is not None
    assert model.a.grad.item() == pytest.approx(2 * distances.item(), rel=1e-12)


@pytest.mark.parametrize("step", [1e-2, 1e-3])
def test_a_finite_difference_of_a_quadratic_is_off_by_its_known_error(step: float) -> None:
    model = Quadratic()
    exact = TrainingStep(model, OPEN, GradientPenalty(1.0))(*images()).gradient
    differed = TrainingStep(model, OPEN, GradientPenalty(1.0, "finite-difference", step))(*images()).gradient
    # (a‖x + hv‖² − a‖x‖²)/h = 2a‖x‖ + ah with v = x/‖x‖, once for each of the two means.
    assert (differed - exact).item() == pytest.approx(2 * 1.5 * step, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_term_does_not_depend_on_the_batch_size(mode: str) -> None:
    step = TrainingStep(Quadratic(), OPEN, GradientPenalty(1.0, mode))  # type: ignore[arg-type]
    inside, labels, outside = images()
    once = step(inside, labels, outside).gradient
    thrice = step(inside.repeat(3, 1, 1, 1), labels.repeat(3), outside.repeat(3, 1, 1, 1)).gradient
    assert thrice.item() == pytest.approx(once.item(), rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_only_samples_on_the_right_side_pay(mode: str) -> None:
    model = Quadratic()
    inside, labels, outside = images()
    scores_in, scores_out = model(inside)[:, 0], model(outside)[:, 0]
    gates = Gates(scores_in.sort().values[1].item(), scores_out.sort().values[-2].item())
    step = TrainingStep(model, gates, GradientPenalty(1.0, mode, 1e-6))  # type: ignore[arg-type]
    paying_in = inside[scores_in <= gates.margin_in]
    paying_out = outside[scores_out >= gates.margin_out]
    assert (len(paying_in), len(paying_out)) == (2, 2)
    expected = 3 * (paying_in.flatten(1).norm(dim=1).sum() / 4 + paying_out.flatten(1).norm(dim=1).sum() / 6)
    assert step(inside, labels, outside).gradient.item() == pytest.approx(expected.item(), rel=1e-4)
    closed = TrainingStep(model, CLOSED, GradientPenalty(1.0, mode))  # type: ignore[arg-type]
    assert closed(inside, labels, outside).gradient.item() == 0


def test_gates_count_a_margin_that_is_met_exactly() -> None:
    shares = gate_shares(torch.tensor([0.0, 1.0, 2.0, 2.0, 3.0]), 2, (1.0, 2.0))
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3]))


def test_a_zero_gradient_gives_no_nan() -> None:
    model = Quadratic()
    nothing = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    for mode in MODES:
        model.a.grad = None
        step = TrainingStep(model, OPEN, GradientPenalty(1.0, mode))  # type: ignore[arg-type]
        terms = step(nothing, torch.zeros(2, dtype=torch.int64), nothing)
        terms.total.backward()
        assert model.a.grad is not None
        assert model.a.grad.isfinite()


class Counted(nn.Module):
    """A small network with batch normalisation that counts forwards, backwards to the pixels, and their batch sizes."""

    def __init__(self, smooth: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Softplus() if smooth else nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 16),
            nn.BatchNorm1d(16),
            nn.Tanh(),
            nn.Linear(16, 3),
        ).double()
        self.forwards: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.forwards.append(len(x))
        logits: Tensor = self.net(x)
        return logits

    @property
    def updates(self) -> set[int]:
        return {int(part.num_batches_tracked) for part in self.net if hasattr(part, "num_batches_tracked")}  # type: ignore[arg-type]


def test_exact_runs_one_forward_and_updates_statistics_once() -> None:
    model = Counted()
    TrainingStep(model, OPEN, GradientPenalty(1.0))(*images()).total.backward()
    assert model.forwards == [10]
    assert model.updates == {1}


def test_finite_difference_runs_a_second_forward_over_open_samples_and_updates_statistics_once() -> None:
    torch.manual_seed(0)
    model = Counted()
    scores = model(torch.cat([images()[0], images()[2]]))[:, 0].detach()
    gates = Gates(scores[:4].sort().values[0].item(), scores[4:].sort().values[-2].item())
    model.forwards = []
    TrainingStep(model, gates, GradientPenalty(1.0, "finite-difference"))(*images()).total.backward()
    assert model.forwards == [10, 3]
    assert model.updates == {2}, "one for the scores above, one for the step"


def test_a_zero_weight_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(a) or original(*a, **k))
    model = Counted()
    seen: list[bool] = []
    model.net[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    terms = TrainingStep(model, EnergyMargin(), GradientPenalty(0.0))(*images())
    terms.total.backward()
    assert (calls, seen, model.forwards) == ([], [False], [10])
    assert terms.gradient.item() == 0


def test_a_lazy_term_counts_for_the_steps_without_it() -> None:
    model = Counted()
    seen: list[bool] = []
    model.net[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    plain = TrainingStep(model, OPEN, GradientPenalty(0.7))(*images())
    seen.clear()
    lazy = TrainingStep(model, OPEN, GradientPenalty(0.7, every=3))
    found = [lazy(*images(), number=number) for number in range(7)]
    assert seen == [True, False, False, True, False, False, True]
    for number, terms in enumerate(found):
        gradient = plain.gradient * (0 if number % 3 else 3)
        torch.testing.assert_close(terms.gradient, gradient)
        torch.testing.assert_close(terms.total, terms.cross_entropy + 0.7 * gradient)


@pytest.mark.parametrize("values", [{"weight": -0.1}, {"step": 0.0}, {"every": 0}])
def test_a_penalty_refuses_what_means_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(CertoodError, match=r"expected weight >= 0, step > 0 and every >= 1, got"):
        GradientPenalty(**values)


def test_the_second_forward_repeats_the_first_ones_normalisation() -> None:
    torch.manual_seed(0)
    model = Counted()
    step = TrainingStep(model, OPEN, GradientPenalty(1.0, "finite-difference", 1e-9))
    inside, labels, outside = images()
    # With a step of nothing the difference of equal scores is zero: any other statistics would show divided by 1e-9.
    assert step(inside, labels, outside).gradient.abs().item() < 1e2


def test_both_implementations_agree_where_the_score_is_smooth() -> None:
    torch.manual_seed(0)
    model = Counted().eval()
    gradients = []
    for penalty in (GradientPenalty(1.0), GradientPenalty(1.0, "finite-difference", 1e-5)):
        model.zero_grad()
        terms = TrainingStep(model, Gates(1e9, -1e9, Energy()), penalty)(*images())
        terms.gradient.backward()
        gradients.append(
            (terms.gradient.detach(), [part.grad.clone() for part in model.parameters() if part.grad is not None])
        )
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-4, atol=0)
    scale = max(part.abs().max() for part in gradients[0][1])
    for exact, differed in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(exact, differed, rtol=1e-3, atol=1e-3 * float(scale))


class Attending(nn.Module):
    """Attention over the pixels of an image, fused where `fused`, between smooth layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.fused = nn.Linear(3, 24), nn.Linear(8, 3), True

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = F.gelu(self.embed(x.flatten(2).mT)).unsqueeze(1).chunk(3, 3)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if self.fused else SDPBackend.MATH):
            return self.head(F.scaled_dot_product_attention(query, key, value).mean((1, 2)))


def gradient_of_the_term(model: nn.Module, penalty: GradientPenalty) -> Tensor:
    step = TrainingStep(model, Gates(1e9, -1e9, Energy()), penalty)
    inside, labels, outside = images()
    term = step(inside.float(), labels, outside.float()).gradient
    with double_backward_explained():
        found = torch.autograd.grad(term, list(model.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in found if part is not None]).double()


def test_a_finite_difference_is_for_smooth_networks_that_cannot_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    model = Attending()
    with pytest.raises(
        CertoodError, match=r"no derivative of aten::\S*attention\S*: use gradient.mode = 'finite-difference'"
    ):
        gradient_of_the_term(model, GradientPenalty(1.0))
    differed = gradient_of_the_term(model, GradientPenalty(1.0, "finite-difference"))
    model.fused = False
    exact = gradient_of_the_term(model, GradientPenalty(1.0))
    assert F.cosine_similarity(differed, exact, dim=0) > 0.999
    # Any other error is left as it is.
    with pytest.raises(RuntimeError, match="something else"), double_backward_explained():
        raise RuntimeError("something else")


@pytest.mark.parametrize(("activation", "agrees"), [(nn.Softplus, True), (nn.ReLU, False)])
def test_kinks_bias_a_finite_difference_at_every_step_size(activation: type[nn.Module], agrees: bool) -> None:
    torch.manual_seed(0)
    sizes = (12, 64, 64)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 3))
    exact = gradient_of_the_term(model, GradientPenalty(1.0))
    cosines = [
        F.cosine_similarity(gradient_of_the_term(model, GradientPenalty(1.0, "finite-difference", h)), exact, dim=0)
        for h in (0.1, 0.03, 0.01)
    ]
    assert all((cosine > 0.999) == agrees for cosine in cosines), cosines


def test_with_batch_statistics_the_finite_differences_gradient_stays_finite_and_stable_in_h() -> None:
    torch.manual_seed(0)
    model = Counted()
    found = []
    for h in (1e-3, 1e-5):
        model.zero_grad()
        terms = TrainingStep(model, Gates(1e9, -1e9, Energy()), GradientPenalty(1.0, "finite-difference", h))(*images())
        terms.gradient.backward()
        found.append(torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None]))
    # Statistics cut from the graph would leave an error that grows a hundredfold between the two.
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0.05 * float(found[1].abs().max()))


class Forgetting(nn.Module):
    """Random numbers of a function, of which no module tells."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)


@pytest.mark.parametrize("random", [nn.Dropout(0.3), Forgetting(), StochasticDepth(0.2, "row")])
def test_random_forwards_with_a_finite_difference_are_refused(random: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), random, nn.Linear(12, 2)).double()
    step = TrainingStep(model, OPEN, GradientPenalty(1.0, "finite-difference"))
    with pytest.raises(CertoodError, match=r"draws random numbers in each .*: switch that off, or use gradient.mode"):
        step(*images())
    # Switched off there is nothing to refuse, and the exact term has one forward only.
    assert TrainingStep(model, OPEN, GradientPenalty(1.0, "exact"))(*images()).gradient > 0
    assert step.eval()(*images()).gradient > 0


@pytest.mark.parametrize("constant", [nn.Dropout(0.0), nn.BatchNorm1d(12)])
def test_what_draws_nothing_is_not_refused(constant: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), constant, nn.Linear(12, 2)).double()
    assert TrainingStep(model, OPEN, GradientPenalty(1.0, "finite-difference"))(*images()).gradient > 0


def test_under_autocast_the_difference_is_taken_in_full_precision() -> None:
    torch.manual_seed(0)
    model = Counted().float()
    inside, labels, outside = (part.float() if part.is_floating_point() else part for part in images())
    step = TrainingStep(model, Gates(1e9, -1e9, Energy()), GradientPenalty(1.0, "finite-difference", 0.01))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = step(inside, labels, outside)
    full = step(inside, labels, outside)
    assert mixed.gradient.item() == pytest.approx(full.gradient.item(), rel=0.1)
    mixed.total.backward()


def test_gradient_norms_are_per_image() -> None:
    x = images()[0]
    torch.testing.assert_close(gradient_norms(Quadratic(), x, FirstLogit()), 3 * x.flatten(1).norm(dim=1))


def test_the_total_is_the_weighted_sum() -> None:
    model = Quadratic()
    terms = TrainingStep(model, EnergyMargin(0.3, -1.0, 2.0), GradientPenalty(0.7))(*images())
    expected = terms.cross_entropy + 0.3 * terms.outlier + 0.7 * terms.gradient
    torch.testing.assert_close(terms.total, expected)
