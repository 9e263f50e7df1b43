"""Every registered score: its value against NumPy, and everything that is claimed of it over samples, on boxes and on balls.

Oracles are written here, from formulas alone: they share no code with the scores.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor

from certood.analysis.bounds import Analysis, LpBall, analyse, capture, logits_of, score_bounds
from certood.analysis.bounds.score_bounds import score_lower, score_upper
from certood.analysis.evidence.attacks import ascend, generators
from certood.analysis.evidence.direct import certified_radii
from certood.analysis.question import Question
from certood.scores import (
    SCORES,
    AbsentClassLogProbability,
    BoxBounds,
    Energy,
    Interval,
    Logits,
    Score,
    UniformLogLikelihood,
    score_by_name,
)
from tests.analysis.networks import NORMS, RADII, captured, images, sampled
from tests.quick import first_is_quick

Formula = Callable[[NDArray[np.float64]], NDArray[np.float64]]
FORMULAS: dict[str, Formula] = {
    "energy": lambda z: -logsumexp(z, axis=-1),
    "energy:temperature=2.5": lambda z: -2.5 * logsumexp(z / 2.5, axis=-1),
    "energy:temperature=0.4": lambda z: -0.4 * logsumexp(z / 0.4, axis=-1),
    "msp": lambda z: -softmax(z, axis=-1).max(-1),
    "max-logit": lambda z: -z.max(-1),
    "entropy": lambda z: -(softmax(z, axis=-1) * log_softmax(z, axis=-1)).sum(-1),
    "absent-class": lambda z: softmax(z, axis=-1)[..., -1],
    # KL(q ‖ p) = Σ q log(q/p) for q = 1/K
    "kl-uniform": lambda z: (np.log(z.shape[-1]) + log_softmax(z, axis=-1)).mean(-1),
}
# Scores that training reads are no detector's scores, so that they have no name on the command line.
TRAINED = {
    "absent-class-log-probability": AbsentClassLogProbability(),
    "uniform-log-likelihood": UniformLogLikelihood(),
}
CASES = [*FORMULAS, *TRAINED]


def score_of(case: str) -> Score:
    return TRAINED.get(case) or score_by_name(case)


def random_logits(count: int, columns: int = 5, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(count, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def boxes(columns: int = 5, count: int = 40) -> tuple[Tensor, Tensor]:
    """Boxes from very narrow to very wide ones (N, K)."""
    centre = random_logits(count, columns)
    generator = torch.Generator().manual_seed(1)
    width = torch.logspace(-3, 1, count, dtype=torch.float64)[:, None]
    below, above = (width * torch.rand(count, columns, dtype=torch.float64, generator=generator) for _ in range(2))
    return centre - below, centre + above


def points(lower: Tensor, upper: Tensor, count: int = 4000) -> Tensor:
    """Points of boxes (count, N, K): insides, and corners, where most bounds are attained."""
    share = torch.rand(count, *lower.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    share[: count // 2] = share[: count // 2].round()
    # Corners at which one logit is at one end and the others at the other.
    for column in range(lower.shape[1]):
        share[2 * column] = 0
        share[2 * column + 1] = 1
        share[2 * column, :, column] = 1
        share[2 * column + 1, :, column] = 0
    return lower + share * (upper - lower)


def gradients(score: Score, logits: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    (found,) = torch.autograd.grad(score(logits).sum(), logits)
    return found


def test_every_registered_score_has_a_formula_here() -> None:
    assert set(SCORES.names()) == {name.partition(":")[0] for name in FORMULAS}
    for name, kind in SCORES.importable().items():
        assert kind().name == name
        assert kind().parameters.keys() == {field.name for field in fields(kind)}  # type: ignore[arg-type]


@pytest.mark.parametrize("case", FORMULAS)
def test_the_value_is_that_of_the_formula(case: str) -> None:
    logits = torch.cat([random_logits(200), random_logits(50, scale=30.0)])
    expected = torch.from_numpy(FORMULAS[case](logits.numpy()))
    torch.testing.assert_close(score_of(case)(logits), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_box_bounds_hold_and_are_attained(case: str) -> None:
    score, (lower, upper) = score_of(case), boxes()
    values = score(points(lower, upper).flatten(0, 1)).view(-1, len(lower))
    low, high = score.box_bounds(lower, upper)
    assert (low <= values.amin(0) + 1e-9).all()
    assert (high >= values.amax(0) - 1e-9).all()
    # On narrow boxes any bound of the first order is nearly attained.
    spread = (values.amax(0) - values.amin(0)).clamp_min(1e-9)
    exact = case.startswith(("energy", "msp", "max-logit", "absent-class"))
    widest = (high - low) / spread
    assert (widest[:10] <= (1.001 if exact else 3.0)).all()
    assert (widest <= (1.3 if exact else 20.0)).all()


@pytest.mark.parametrize("case", CASES)
def test_differences_that_are_known_make_box_bounds_tighter(case: str) -> None:
    """Logits that move together: their differences vary less than the box says."""
    score, (lower, upper) = score_of(case), boxes()
    inside = points(lower, upper, 3000)
    common = inside.mean(2, keepdim=True) - (lower + upper).mean(1)[None, :, None] / 2
    moved = ((lower + upper) / 2 + common + 0.1 * (inside - (lower + upper) / 2 - common)).clamp(lower, upper)
    between = moved[..., None, :] - moved[..., :, None]
    known = Interval(between.amin(0), between.amax(0))
    values = score(moved.flatten(0, 1)).view(-1, len(lower))
    loose, tight = score.box_bounds(lower, upper), score.box_bounds(lower, upper, known)
    assert (tight.lower <= values.amin(0) + 1e-9).all()
    assert (tight.upper >= values.amax(0) - 1e-9).all()
    assert (tight.lower >= loose.lower - 1e-9).all()
    assert (tight.upper <= loose.upper + 1e-9).all()
    gain = (loose.upper - loose.lower) - (tight.upper - tight.lower)
    assert case == "max-logit" or (gain > 1e-3).any()


@pytest.mark.parametrize("case", CASES)
def test_box_bounds_are_differentiated_rightly(case: str) -> None:
    score, (lower, upper) = score_of(case), boxes(4, 6)
    ends = [lower.clone().requires_grad_(), upper.clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda low, high: tuple(score.box_bounds(low, high)), ends, eps=1e-6, atol=1e-4)
    # A column of a width of zero, and logits far apart, have gradients that are numbers.
    edge = torch.tensor([[1e3, -1e3, 0.0, 0.0]], dtype=torch.float64).requires_grad_()
    sum(part.sum() for part in score.box_bounds(edge, edge + torch.tensor([0, 1.0, 2.0, 0]))).backward()  # type: ignore[union-attr]
    assert edge.grad is not None
    assert edge.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_bounds_are_computed_in_the_precision_they_are_given(case: str, dtype: torch.dtype) -> None:
    score, (lower, upper) = score_of(case), boxes()
    low, high = (part.to(dtype).requires_grad_() for part in (lower, upper))
    expected = score.box_bounds(low.detach().double(), high.detach().double())
    for found in (score.box_bounds(low, high), score.bounds(Logits(BoxBounds(low, high)))):
        assert {part.dtype for part in found} == {dtype}
        slopes = torch.autograd.grad(sum(part.float().sum() for part in found), (low, high))
        assert all(slope.isfinite().all() for slope in slopes)
        assert all((slope != 0).any() for slope in slopes)
    size = 2e-5 if dtype == torch.float32 else 0.25
    for part, exact in zip(score.box_bounds(low, high), expected, strict=True):
        assert (
            (part.double() - exact).abs() <= size * (1 + low.detach().abs().amax(1) + high.detach().abs().amax(1))
        ).all()


@pytest.mark.parametrize("case", CASES)
def test_rows_bound_the_score_from_both_sides(case: str) -> None:
    """Row by row: from below min over groups of max over alternatives, from above the other way round."""
    score, (lower, upper) = score_of(case), boxes()
    logits, inside = Logits(BoxBounds(lower, upper)), points(lower, upper, 2000)
    values = score(inside.flatten(0, 1)).view(-1, len(lower))
    for side in ("lower", "upper"):
        rows, constants, _ = score.rows(logits, side)  # type: ignore[arg-type]
        linear = torch.einsum("ngmk,pnk->pngm", rows, inside) + constants
        if side == "lower":
            assert (score.from_row_scale(linear.amax(3).amin(2)) <= values + 1e-9).all()
        else:
            assert (score.from_row_scale(linear.amin(3).amax(2)) >= values - 1e-9).all()
    threshold = float(values.median())
    there = score.from_row_scale(torch.tensor(score.to_row_scale(threshold), dtype=torch.float64))
    assert there.item() == pytest.approx(threshold)


@pytest.mark.parametrize("case", CASES)
def test_members_of_a_family_of_tangents_bound_the_score(case: str) -> None:
    score, (lower, upper) = score_of(case), boxes()
    logits, inside = Logits(BoxBounds(lower, upper)), points(lower, upper, 500)
    values = score(inside.flatten(0, 1)).view(-1, len(lower))
    for side in ("lower", "upper"):
        family = score.rows(logits, side).tangents  # type: ignore[arg-type]
        if family is None:
            continue
        parameters = random_logits(len(lower), seed=5)
        members = [family.member(group, parameters) for group in range(len(family.offsets))]
        linear = torch.stack([(row * inside).sum(2) + constant for row, constant in members])
        if side == "lower":
            assert (score.from_row_scale(linear.amin(0)) <= values + 1e-9).all()
        else:
            assert (score.from_row_scale(linear.amax(0)) >= values - 1e-9).all()


@pytest.mark.parametrize("case", CASES)
def test_all_bounds_of_a_box_are_in_order(case: str) -> None:
    score, (lower, upper) = score_of(case), boxes()
    values = score(points(lower, upper).flatten(0, 1)).view(-1, len(lower))
    logits = Logits(BoxBounds(lower, upper))
    both = score.bounds(logits)
    # One side alone is less work, and may be looser.
    assert (score.lower(logits) <= both.lower + 1e-9).all()
    assert (both.lower <= values.amin(0) + 1e-9).all()
    assert (values.amax(0) <= both.upper + 1e-9).all()
    assert (both.upper <= score.upper(logits) + 1e-9).all()


@pytest.mark.parametrize("case", CASES)
def test_no_gradient_leaves_its_box(case: str) -> None:
    score, (lower, upper) = score_of(case), boxes()
    found = score.gradient_box(Logits(BoxBounds(lower, upper)))
    slopes = gradients(score, points(lower, upper).flatten(0, 1)).view(-1, *lower.shape)
    assert (found.lower <= slopes.amin(0) + 1e-9).all()
    assert (found.upper >= slopes.amax(0) - 1e-9).all()
    torch.testing.assert_close(slopes.sum(2), torch.full_like(slopes[..., 0], found.total), rtol=0, atol=1e-9)
    # At a point it is the gradient.
    centre = (lower + upper) / 2
    exact = score.gradient_box(Logits(BoxBounds(centre, centre)))
    torch.testing.assert_close(exact.lower, gradients(score, centre), rtol=0, atol=1e-9)
    torch.testing.assert_close(exact.upper, gradients(score, centre), rtol=0, atol=1e-9)


@pytest.mark.parametrize("columns", [2, 3, 10, 100])
@pytest.mark.parametrize("case", CASES)
def test_the_lipschitz_constant_is_exceeded_nowhere_and_nearly_reached(case: str, columns: int) -> None:
    """‖∂S/∂z‖₁ over random logits, and over those of one class against all others, where it is largest."""
    score = score_of(case)
    lead = torch.zeros(400, columns, dtype=torch.float64)
    lead[:, -1] = torch.linspace(-30, 30, 400, dtype=torch.float64)
    logits = torch.cat([random_logits(500, columns), random_logits(500, columns, 10.0), lead])
    sizes = gradients(score, logits).abs().sum(1)
    bound = score.lipschitz(columns)
    assert (sizes <= bound * (1 + 1e-9)).all()
    assert sizes.max() >= 0.98 * bound
    # Changes, not slopes: every logit by at most δ.
    moved = logits + 0.3 * (2 * torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)).double() - 1)
    assert ((score(moved) - score(logits)).abs() <= 0.3 * bound + 1e-9).all()


@pytest.mark.parametrize("case", CASES)
def test_scores_of_classes_are_upper_bounds(case: str) -> None:
    score, logits = score_of(case), random_logits(200)
    found = score.class_scores(logits)
    if found is not None:
        assert (found.amin(1) >= score(logits) - 1e-12).all()
        far = torch.zeros(1, 5, dtype=torch.float64)
        far[0, 2] = 60
        assert found.shape == logits.shape
        assert score.class_scores(far)[0].argmin() == 2  # type: ignore[index]


def test_many_classes_are_read_off_the_box() -> None:
    lower, upper = boxes(40, 6)
    inside = points(lower, upper, 500)
    for name in FORMULAS:
        score = score_of(name)
        values = score(inside.flatten(0, 1)).view(-1, len(lower))
        low, high = score.bounds(Logits(BoxBounds(lower, upper)))
        assert (low <= values.amin(0) + 1e-9).all(), name
        assert (high >= values.amax(0) - 1e-9).all(), name


@pytest.mark.parametrize("case", CASES)
def test_an_output_that_is_no_class_does_not_enter(case: str) -> None:
    """The score on 4 of 5 outputs is that of a network with 4, whatever the last output does."""
    score, (lower, upper) = score_of(case), boxes()
    if not score.suits(4, 4):
        assert score.on(4, 5) is score
        return
    bound, first = score.on(4, 5), slice(0, 4)
    assert bound.on(4, 4) is score
    torch.testing.assert_close(bound(upper), score(upper[:, first]))
    whole, part = Logits(BoxBounds(lower, upper)), Logits(BoxBounds(lower[:, first], upper[:, first]))
    for one, other in zip(bound.bounds(whole), score.bounds(part), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(bound.upper(whole), score.upper(part))
    torch.testing.assert_close(bound.lower(whole), score.lower(part))
    for one, other in zip(
        bound.box_bounds(lower, upper), score.box_bounds(lower[:, first], upper[:, first]), strict=True
    ):
        torch.testing.assert_close(one, other)
    inner, outer = score.gradient_box(part), bound.gradient_box(whole)
    torch.testing.assert_close(outer.lower[:, first], inner.lower)
    assert (outer.lower[:, 4] == 0).all()
    assert (outer.upper[:, 4] == 0).all()
    assert bound.lipschitz(5) == score.lipschitz(4)
    for side in ("lower", "upper"):
        rows, constants, family = bound.rows(whole, side)  # type: ignore[arg-type]
        own = score.rows(part, side)  # type: ignore[arg-type]
        torch.testing.assert_close(rows[..., :4], own.rows)
        torch.testing.assert_close(constants, own.constants)
        assert (rows[..., 4] == 0).all()
        if family is not None:
            row, _ = family.member(0, family.start)
            torch.testing.assert_close(row, rows[:, 0, -1])


def balls(norm: float) -> Iterator[tuple[Analysis, Tensor, Tensor]]:
    """Analyses of random trained networks over balls, and logits (P, N, K) of points of the balls."""
    for name in ("mlp", "conv", "residual"):
        graph, x = captured(name, trained=True), images(3)
        for factor in (0.2, 3.0):
            eps = factor * RADII[norm]
            inside = sampled(x, eps, norm, 200)
            yield (
                analyse(graph, LpBall(x, eps, norm), "crown"),
                x,
                graph(inside.flatten(0, 1)).view(200, 3, -1).detach(),
            )


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
def test_no_score_of_a_ball_leaves_its_bounds(norm: float) -> None:
    for analysis, _, reached in balls(norm):
        for case in CASES:
            score = score_of(case)
            values = score(reached.flatten(0, 1)).view(reached.shape[:2])
            found = score_bounds(analysis, score)
            assert (found.lower <= values.amin(0) + 1e-9).all(), case
            assert (found.upper >= values.amax(0) - 1e-9).all(), case
            assert (score_lower(logits_of(analysis), score) <= values.amin(0) + 1e-9).all(), case
            assert (score_upper(logits_of(analysis), score) >= values.amax(0) - 1e-9).all(), case


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
@pytest.mark.parametrize("case", FORMULAS)
def test_no_attack_changes_a_decision_within_the_radius_in_closed_form(case: str, norm: float) -> None:
    graph, x, score = captured("conv", trained=True), images(5), score_of(case)
    values = score(graph(x)).detach()
    question = Question(graph, score, float(values.median()) + 1e-6, norm)
    accepted = values <= question.threshold
    searched = certified_radii(question, x, accepted, method="crown")
    for decision in (True, False):
        members, eps = x[accepted == decision], 1.02 * searched[accepted == decision]
        ball = LpBall(members, eps, norm)
        analysis = analyse(graph, ball, "crown")
        radius = question.linear_radius(analysis, logits_of(analysis), decision)
        sign = 1.0 if decision else -1.0
        assert (radius > 0.3 * eps).double().mean() >= 0.5
        assert (radius <= eps).all()
        random = generators(0, range(len(members)))
        worst, _ = ascend(
            lambda y, sign=sign: sign * question.scores(y), members, radius, norm, random=random, steps=30, restarts=3
        )
        assert ((question.threshold - sign * worst) * sign >= 0).all()


def test_a_linear_network_has_its_exact_radius_in_closed_form() -> None:
    """Two logits ±w·x: these scores are functions of w·x alone, so the true radius is known."""
    weight = torch.linspace(-1, 1, 16, dtype=torch.float64)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2, bias=False)).double()
    model[1].weight.data = torch.stack([weight, -weight])
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    x[0, 0, 2:] += 0.1
    graph, value = capture(model, x), float((x.flatten() * weight).sum())
    level = value - 0.3
    for case, share in (("msp", 0.75), ("max-logit", 0.99), ("kl-uniform", 0.6)):
        score = score_of(case)
        threshold = float(score(torch.tensor([[level, -level]], dtype=torch.float64)))
        question = Question(graph, score, threshold, math.inf)
        exact = 0.3 / float(weight.abs().sum())
        ball = LpBall(x, exact)
        analysis = analyse(graph, ball, "crown")
        found = question.linear_radius(analysis, logits_of(analysis), accepted=True).item()
        assert found <= exact * (1 + 1e-9), case
        assert found >= share * exact, case


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy:temperature=hot", "parameter 'temperature' of score 'energy', given as 'hot'"),
        ("energy:heat=2", "score 'energy' has no parameter 'heat'; expected temperature"),
        ("msp:temperature=2", "score 'msp' has no parameter 'temperature'; it has none"),
        ("energy:temperature=0", "temperature > 0, got 0"),
        ("energi:temperature=2", "did you mean 'energy'"),
    ],
)
def test_parameters_that_do_not_fit_are_named(text: str, message: str) -> None:
    from certood.errors import CertoodError

    with pytest.raises(CertoodError, match=message):
        score_by_name(text)


def test_a_label_is_read_back() -> None:
    from certood.scores import score_of_description

    for score in (Energy(), Energy(2.5), *map(score_by_name, FORMULAS)):
        assert score_by_name(score.label) == score
        assert score_of_description(score.description) == score
    assert Energy().label == "energy"
    assert Energy(2.5).label == "energy:temperature=2.5"


def test_a_score_without_bounds_is_measured_and_never_certified() -> None:
    from certood.errors import CannotCertify

    class Mean(Score):
        name = "mean"

        def __call__(self, logits: Tensor) -> Tensor:
            return -logits.mean(-1)

    logits = Logits(BoxBounds(*boxes()))
    with pytest.raises(CannotCertify, match="'mean' has no bounds: its class defines no gradient_box"):
        Mean().bounds(logits)
    assert Mean().lipschitz(5) == math.inf
