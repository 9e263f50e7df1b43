"""Bounds of guarded scores: closed forms, samples and attacks, both parts of the network, and what stays unknown."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certood.analysis.bounds import LpBall, analyse, capture, logits_of, score_bounds
from certood.analysis.certification import certify, question_of
from certood.analysis.evidence.attacks import ascend, generators
from certood.analysis.evidence.direct import certified_radii
from certood.analysis.evidence.registry import quantities
from certood.analysis.question import Question, Scored
from certood.analysis.settings import Settings
from certood.detector import Detector
from certood.errors import CannotCertify, CertoodError, UnsupportedOperation
from certood.models.guarded import GuardDescription, GuardedNetwork
from certood.scores import Energy, score_by_name
from certood.scores.guarded import GuardAndSquashed, Guarded
from tests.quick import first_is_quick

SHAPE = (1, 4, 4)
EPS = 0.08
SCORE = Guarded("energy", alpha=0.7, sigma=0.5, centre=-1.3, width=0.2)
EFFORT: dict[str, Any] = {"attack_steps": 4, "restarts": 1, "samples": 2}


class Sorted(nn.Module):
    """An operation without bounds."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=1).values


def layers(outputs: int, *more: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), *more, nn.Linear(8, outputs))


def linear_guard() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 1))


def detector(guard: nn.Module | None = None, base: nn.Module | None = None, score: Guarded = SCORE) -> Detector:
    network = GuardedNetwork(base or layers(3), guard or layers(1, seed=1)).double()
    description = GuardDescription("their", (0.0,), (1.0,))
    made = Detector(network, score, 0.0, "their", SHAPE, ("a", "b", "c"), (0.0,), (1.0,), guard=description)
    return replace(made, threshold=made.scores(images()).median().item() + 1e-3)


def images(count: int = 8) -> Tensor:
    return torch.rand(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def extremes(own: Detector, x: Tensor, eps: float, norm: float) -> tuple[Tensor, Tensor]:
    """The least and the largest score (N,) that attacks and random points find in the ball."""
    found = []
    for sign in (-1.0, 1.0):
        value, _ = ascend(
            lambda points, sign=sign: sign * own.output_score(own.model(points)),  # type: ignore[misc]
            x,
            torch.full((len(x),), eps, dtype=torch.float64),
            norm,
            random=generators(0, range(len(x))),
            steps=20,
            restarts=3,
        )
        found.append(sign * value)
    return found[0], found[1]


@pytest.mark.parametrize("norm", first_is_quick([math.inf, 2.0, 1.0]))
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("base", ["energy", "msp", "max-logit", "entropy"])
def test_bounds_hold_for_whatever_attacks_find(norm: float, whole: bool, base: str) -> None:
    own, x = detector(score=replace(SCORE, base=base, centre=-0.6)), images()
    eps = EPS * {math.inf: 1, 2.0: 4, 1.0: 16}[norm]
    low, high = extremes(own, x, eps, norm)
    assert (high > low + 0.05).all(), "an attack that finds nothing tests nothing"
    part, score = own.bounded_part(whole=whole)
    graph = capture(part, torch.zeros(1, *SHAPE))
    for method in ("interval", "crown"):
        found = score_bounds(analyse(graph, LpBall(x, eps, norm), method), score)
        assert (found.lower <= low).all()
        assert (found.upper >= high).all()


def test_bounds_of_a_linear_guard_are_its_closed_form() -> None:
    guard = linear_guard()
    own, x = detector(guard), images()
    row = guard[1].weight.double()[0]  # type: ignore[index]
    # The ball is clipped to [0, 1].
    lower, upper = (x - EPS).clamp_min(0).flatten(1), (x + EPS).clamp_max(1).flatten(1)
    most = torch.where(row > 0, upper, lower) @ row + guard[1].bias.double()  # type: ignore[index]
    least = torch.where(row > 0, lower, upper) @ row + guard[1].bias.double()  # type: ignore[index]
    part, score = own.bounded_part()
    assert part is guard
    found = score_bounds(analyse(capture(part, torch.zeros(1, *SHAPE)), LpBall(x, EPS), "crown"), score)
    torch.testing.assert_close(found.lower, -most.detach() / 0.5, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.upper, -least.detach() / 0.5 + 0.7, rtol=1e-9, atol=1e-9)


def test_bounds_of_both_networks_are_no_looser_than_those_of_the_guard() -> None:
    own, x = detector(), images()
    found = []
    for whole in (False, True):
        part, score = own.bounded_part(whole=whole)
        found.append(score_bounds(analyse(capture(part, torch.zeros(1, *SHAPE)), LpBall(x, 0.01), "crown"), score))
    alone, both = found
    assert (both.lower >= alone.lower - 1e-12).all()
    assert (both.upper <= alone.upper + 1e-12).all()
    assert (both.upper - both.lower < alone.upper - alone.lower - 0.1).any()


def test_an_image_is_certified_exactly_where_the_guard_decides_alone() -> None:
    guard = linear_guard()
    own, x = detector(guard), images()
    bound = own.bounded_part()
    question = question_of(own)
    logits = logits_of(analyse(question.graph, LpBall(x, EPS), "crown"))
    found = score_bounds(analyse(capture(guard, torch.zeros(1, *SHAPE)), LpBall(x, EPS), "crown"), bound[1])
    for accepted in (True, False):
        margins = question.margin_bounds(logits, accepted)
        expected = question.threshold - found.upper if accepted else found.lower - question.threshold
        assert torch.equal(margins > 0, expected > 0)
    accepted = question.scores(x) <= question.threshold
    radii = certified_radii(question, x, accepted, method="crown")
    # In closed form, before clipping: the slack of the guard over the l1 norm of its row.
    row = guard[1].weight.double()[0]  # type: ignore[index]
    with torch.no_grad():
        point = -guard.double()(x)[:, 0] / 0.5
    slack = torch.where(accepted, question.threshold - point - 0.7, point - question.threshold)
    assert (radii[slack <= 0] == 0).all()
    assert (radii >= 0.98 * slack.clamp_min(0) * 0.5 / row.abs().sum().detach()).all()
    assert ((radii > 0) & accepted).any()
    assert ((radii > 0) & ~accepted).any()


LIPSCHITZ = {quantity.title for quantity in quantities() if quantity.of == "lipschitz" and quantity.kind == "certified"}
LIPSCHITZ |= {"radius_global", "radius_lipschitz", "radius_step"}


@pytest.mark.parametrize("kind", first_is_quick(["id", "ood"]))
def test_lipschitz_columns_are_empty_unless_both_networks_are_bounded(kind: str) -> None:
    own, x = detector(), images(4)
    alone = certify(own, x, kind=kind, settings=Settings(eps=(0.02, EPS), **EFFORT))
    both = certify(own, x, kind=kind, settings=Settings(eps=(0.02, EPS), bound_base=True, **EFFORT))
    for one, other in zip(alone, both, strict=True):
        assert all(math.isnan(getattr(one, name)) for name in LIPSCHITZ)
        assert not any(math.isnan(getattr(other, name)) for name in LIPSCHITZ)
        assert one.violations == other.violations == 0
        assert one.score == other.score
        assert one.gradient_norm == other.gradient_norm
        assert 0 <= one.radius_certified <= one.radius_attack
        assert one.radius_certified <= other.radius_certified * 1.02
        assert all(part.lower <= part.attacked <= part.upper for part in one.at)
        assert other.gradient_norm <= other.lipschitz_certified


@pytest.mark.slow
def test_a_classifier_without_bounds_is_certified_by_its_guard() -> None:
    own = detector(base=layers(3, Sorted()))
    records = certify(own, images(4), settings=Settings(eps=(0.01,), **EFFORT))
    assert all(record.violations == 0 for record in records)
    assert any(record.radius_certified > 0 for record in records)
    with pytest.raises(UnsupportedOperation, match=r"aten\.sort"):
        question_of(own, bound_base=True)
    with pytest.raises(CertoodError, match="this one has no guard"):
        question_of(replace(own, guard=None, score=Energy()), bound_base=True)


def test_attacks_see_both_networks() -> None:
    own, x = detector(), images()
    question = question_of(own)
    points = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(question.scores(points).sum(), points)
    outputs = own.model(points)
    energy = -torch.logsumexp(outputs[:, :3], 1)
    q = 1 / (1 + torch.exp(-(energy + 1.3) / 0.2))
    slopes = [torch.autograd.grad(part.sum(), points, retain_graph=True)[0] for part in (energy, outputs[:, 3])]
    expected = (0.7 * q * (1 - q) / 0.2).view(-1, 1, 1, 1) * slopes[0] - slopes[1] / 0.5
    torch.testing.assert_close(found, expected)
    assert slopes[0].abs().amax() > 0
    # The score of a single class is no lower than that of all.
    of_classes = question.class_scores(x)
    assert of_classes is not None
    assert (of_classes >= question.scores(x)[:, None]).all()


def test_a_guard_that_is_not_the_one_of_the_detector_is_a_violation() -> None:
    own, x = detector(), images(4)
    honest = question_of(own)
    other, _ = detector(guard=layers(1, seed=9)).bounded_part()
    wrong = replace(honest, graph=capture(other, torch.zeros(1, *SHAPE)))
    for question, sound in ((honest, True), (wrong, False)):
        records = certify(own, x, settings=Settings(eps=(0.01,), **EFFORT), question=question)
        assert (sum(record.violations for record in records) == 0) == sound


def test_the_copy_says_between_which_values_a_score_lies() -> None:
    own, x = detector(), images()
    question = question_of(own)
    scores = question.scores(x)
    low, high = question.graph_scores(x)
    torch.testing.assert_close(high - low, torch.full_like(low, 0.7))
    assert ((low <= scores) & (scores <= high)).all()
    torch.testing.assert_close(question.point_margins(x, accepted=True), question.threshold - high)
    torch.testing.assert_close(question.point_margins(x, accepted=False), low - question.threshold)
    whole = question_of(own, bound_base=True)
    low, high = whole.graph_scores(x)
    torch.testing.assert_close(low, high, rtol=0, atol=0)
    torch.testing.assert_close(low, scores)
    assert isinstance(question.scored, Scored)
    assert question.module is question.scored.module


def test_the_score_of_all_outputs_has_no_bounds_of_its_own() -> None:
    own = detector()
    question = Question(capture(own.model, torch.zeros(1, *SHAPE)), own.output_score, 0.0)
    with pytest.raises(CannotCertify, match="a part of the network"):
        question.margin_bounds(logits_of(analyse(question.graph, LpBall(images(), 0.01))), accepted=True)
    plain = replace(own, score=score_by_name("energy"))
    assert plain.bounded_part()[0] is own.model


def test_the_constant_of_both_outputs_is_attained() -> None:
    score = GuardAndSquashed(0.7, 0.5)
    outputs = torch.tensor([[1.0, 0.2], [0.0, 1.2]], dtype=torch.float64)
    before, after = score(outputs).tolist()
    assert after - before == pytest.approx(score.lipschitz(2)) == pytest.approx(2.7)


def test_the_gradient_box_of_both_outputs_holds_the_gradient_and_its_sum() -> None:
    score = GuardAndSquashed(0.7, 0.5)
    outputs = torch.tensor([[1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(score(outputs).sum(), outputs)
    two = layers(2).double()
    box = score.gradient_box(logits_of(analyse(capture(two, images()), LpBall(images(), 0.01))))
    assert torch.equal(box.lower, gradient.expand(len(images()), 2))
    assert torch.equal(box.upper, box.lower)
    assert box.total == pytest.approx(gradient.sum().item())
