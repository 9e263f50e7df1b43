"""Branch and bound: parts that cover the ball, bounds that hold on each, radii between the certified and the attacked ones."""

import itertools
import math
import time

import pytest
import torch
from torch import Tensor, nn

from certood.analysis.bounds import Analysis, Captured, LpBall, analyse, bound, capture, export
from certood.analysis.bounds.branching import Effort, Functions, Mixture, branched_least, branched_rows
from certood.analysis.bounds.branching.parts import PartBounds
from certood.analysis.evidence.attacks import generators
from certood.analysis.evidence.direct import certified_radii
from certood.analysis.evidence.nearest import attack_radii
from certood.analysis.evidence.refined import refined_radii
from certood.analysis.question import Question
from certood.errors import CertoodError
from certood.scores import SCORES, Energy, score_by_name
from tests.analysis.networks import NORMS, RADII, attacked, captured, images, network, sampled
from tests.quick import first_is_quick


def least(analysis: Analysis, shift: Tensor, effort: Effort | None = None, *, target: float = 0.0) -> Tensor:
    """Lower bounds of the first logit plus a shift (N,)."""
    rows = torch.zeros(len(shift), 1, analysis.graph.outputs, dtype=torch.float64)
    rows[:, :, 0] = 1
    numbers, nothing = torch.arange(len(shift)), torch.full_like(shift, -math.inf)
    functions = Functions(numbers, numbers, torch.zeros_like(shift)[:, None], nothing, Mixture(rows, shift[:, None]))
    return branched_least(analysis, functions, effort, target=target)


def plain_least(analysis: Analysis, shift: Tensor) -> Tensor:
    """The same by one linear bound."""
    rows = torch.zeros(len(shift), 1, analysis.graph.outputs, dtype=torch.float64)
    rows[:, :, 0] = 1
    return analysis.least(len(analysis.graph.nodes) - 1, rows)[:, 0] + shift


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "leaky", "relu6", "tanh", "gelu", "elu"])
def test_no_point_lies_below_and_more_parts_are_tighter(name: str, norm: float) -> None:
    graph, x, eps = captured(name, trained=True), images(), 2 * RADII[norm]
    model = graph.module
    analysis = analyse(graph, LpBall(x, eps, norm), "crown")
    points = sampled(x, eps, norm, 3000)
    lowest = model(points.flatten(0, 1)).view(3000, len(x), 4)[..., 0].amin(0).detach()
    lowest = torch.minimum(lowest, -attacked(lambda y: -model(y), x, eps, norm)[:, 0])
    # Shifted so that the truth is negative: the search cannot end early.
    shift = -lowest - 1e-6
    found = [least(analysis, shift, Effort(parts=parts, batch=8, steps=6)) for parts in (1, 24)]
    plain = plain_least(analysis, shift)
    assert (found[1] <= lowest + shift + 1e-9).all()
    assert (found[0] >= plain - 1e-9).all()
    assert (found[1] >= found[0] - 1e-9).all()
    if norm == math.inf:
        assert (found[1] > found[0] + 1e-6).any()


def test_a_tiny_network_is_decided_exactly() -> None:
    """|2x₁ − 1| + |2x₂ − 1| by four ReLUs, at least 0: the sum and a hundredth is positive, less a hundredth is not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    model[1].weight.data = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]]).double()
    model[1].bias.data = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()
    model[3].weight.data = torch.ones(1, 4).double()
    model[3].bias.data.zero_()
    x = torch.full((1, 1, 1, 2), 0.5).double()
    analysis = analyse(capture(model, x), LpBall(x, 0.5), "crown")

    found = least(analysis, torch.tensor([0.01]).double())
    assert found.item() > 0
    low = least(analysis, torch.tensor([-0.01]).double(), Effort(parts=40, first_steps=10))
    assert low.item() == pytest.approx(-0.01, abs=1e-2)


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
def test_radii_grow_and_stay_below_the_attack(norm: float) -> None:
    graph, x = captured("conv", trained=True), images(4)
    scores = Energy()(graph(x))
    question = Question(graph, Energy(), float(scores.median()) + 1e-6, norm)
    accepted = scores <= question.threshold
    certified = certified_radii(question, x, accepted, method="crown")
    reached, _ = attack_radii(question, x, accepted, certified, random=generators(0, range(4)))
    refined = refined_radii(question, x, accepted, certified, reached, parts=6, max_probes=3)
    assert (refined >= certified).all()
    assert (refined <= reached * (1 + 1e-9)).all()
    assert (refined / certified)[accepted].mean() > 1.02
    assert (refined / certified)[~accepted].mean() > 1.0


def test_a_time_limit_refines_image_by_image() -> None:
    graph, x = captured("conv", trained=True), images(3)
    question = Question(graph, Energy(), float(Energy()(graph(x)).max()) + 0.5, math.inf)
    accepted, moved = torch.ones(3, dtype=torch.bool), []
    certified = certified_radii(question, x, accepted, method="crown")
    reached = torch.full((3,), math.inf, dtype=torch.float64)
    begin = time.monotonic()
    refined = refined_radii(question, x, accepted, certified, reached, seconds=0.3, advance=moved.append)
    assert time.monotonic() - begin < 10
    assert moved == [1, 1, 1]
    assert (refined >= certified).all()
    assert (refined > certified).any()
    points = sampled(x, 1.0, math.inf, 500)
    inside = x + (points - x) * refined.view(-1, 1, 1, 1)
    assert (Energy()(graph(inside.flatten(0, 1))) <= question.threshold).all()


@pytest.mark.parametrize("score", first_is_quick([name for name in SCORES.names() if name != "energy"]))
def test_every_other_score_is_refined_and_no_attack_is_overtaken(score: str) -> None:
    graph, x, chosen = captured("conv", trained=True), images(4), score_by_name(score)
    scores = chosen(graph(x))
    question = Question(graph, chosen, float(scores.median()) + 1e-6, math.inf)
    accepted = scores <= question.threshold
    certified = certified_radii(question, x, accepted, method="crown")
    reached, _ = attack_radii(question, x, accepted, certified, random=generators(0, range(4)))
    refined = refined_radii(question, x, accepted, certified, reached, parts=8, max_probes=3)
    assert (refined >= certified).all()
    assert (refined <= reached * (1 + 1e-9)).all()
    assert (refined > certified * 1.005).any()


def test_an_unreached_attack_radius_is_no_obstacle() -> None:
    model, x = network("conv", trained=True), images(2)
    question = Question(capture(model, x), Energy(), 1e6, math.inf)
    accepted = torch.ones(2, dtype=torch.bool)
    refined = refined_radii(question, x, accepted, torch.full((2,), 0.1).double(), torch.full((2,), math.inf), parts=4)
    assert (refined > 0.9).all()


def test_without_activations_there_is_nothing_to_split() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.Linear(8, 4))
    x = images()
    analysis = analyse(capture(model, x), LpBall(x, 0.05), "crown")
    shift = torch.full((2,), -10.0).double()
    found = least(analysis, shift)
    plain = plain_least(analysis, shift)
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize(
    ("activation", "kinks"),
    [
        (nn.ReLU(), (0.0,)),
        pytest.param(nn.LeakyReLU(0.1), (0.0,), marks=pytest.mark.slow),
        pytest.param(nn.Hardtanh(-0.5, 0.3), (-0.5, 0.3), marks=pytest.mark.slow),
        pytest.param(nn.Hardtanh(0.2, 1.1), (0.2, 1.1), marks=pytest.mark.slow),
    ],
)
def test_both_halves_count(activation: nn.Module, kinks: tuple[float, ...]) -> None:
    """A piecewise linear function of one pixel, least at a kink or an end: the search ends neither above nor far below it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 3), activation, nn.Linear(3, 1)).double()
    x = torch.full((1, 1, 1, 1), 0.5).double()
    captured = Captured(export(model, x))
    for sign, mirrored in itertools.product((1.0, -1.0), repeat=2):
        weight, bias = torch.tensor([2.0, -2.0, 2.0]).double(), torch.tensor([-1.0, 1.0, -0.7]).double()
        model[1].weight.data, model[1].bias.data = mirrored * weight[:, None], mirrored * bias
        model[3].weight.data = sign * torch.tensor([[1.0, -3.0, 1.5]]).double()
        model[3].bias.data.zero_()
        places = [(mirrored * kink - bias) / weight for kink in kinks]
        points = torch.cat([*places, torch.tensor([0.0, 1.0]).double()]).clamp(0, 1)
        lowest = model(points.view(-1, 1, 1, 1)).min().item()

        analysis = analyse(captured.bind(model.state_dict()), LpBall(x, 0.5), "crown")
        # The truth is a little below 0, so that the search cannot end early, or a little above, so that it can.
        for truth, parts, steps in ((-1e-4, 8, 10), (1e-2, 64, 30)):
            shift = torch.tensor([truth - lowest], dtype=torch.float64)
            effort = Effort(parts=parts, batch=4, steps=steps)
            found = least(analysis, shift, effort).item()
            assert found <= truth + 1e-9
        assert found > 0


@pytest.mark.parametrize("activation", first_is_quick([nn.Tanh(), nn.GELU(), nn.Softplus(2.0), nn.ELU()]))
def test_a_function_that_bends_is_bounded_in_its_quarters(activation: nn.Module) -> None:
    """A function of one pixel against a grid of it: quarters leave a quarter of the gap of the whole, or less than 0.05."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), activation, nn.Linear(2, 1)).double()
    model[1].weight.data = torch.tensor([[3.0], [-2.0]], dtype=torch.float64)
    model[1].bias.data = torch.tensor([-1.0, 1.2], dtype=torch.float64)
    x = torch.full((1, 1, 1, 1), 0.5).double()
    for sign in (1.0, -1.0):
        model[3].weight.data, model[3].bias.data = sign * torch.tensor([[1.0, 0.7]]).double(), torch.zeros(1).double()
        lowest = model(torch.linspace(0, 1, 20001).double().view(-1, 1, 1, 1)).min().detach()
        analysis = analyse(capture(model, x), LpBall(x, 0.5), "crown")
        shift = -lowest.view(1)
        gaps = [-least(analysis, shift, Effort(parts, steps=20), target=1.0).item() for parts in (1, 64)]
        assert gaps[1] >= -1e-9
        assert gaps[1] < max(0.05, gaps[0] / 4)


@pytest.mark.parametrize("name", first_is_quick(["gelu", "relu6"]))
def test_halves_cover_the_box_and_nothing_negative_is_subtracted(name: str) -> None:
    """Of random splits: inputs of an activation lie in a half, and there m·(z − k) is nowhere negative for what is subtracted."""
    graph, x = captured(name, trained=True), torch.cat([images(), images().flip(1)])
    analysis = analyse(graph, LpBall(x, 0.4), "crown")
    numbers, nothing = torch.arange(len(x)), torch.full((len(x),), -math.inf, dtype=torch.float64)
    start = torch.zeros(len(x), 1, dtype=torch.float64)
    rows = torch.ones(len(x), 1, graph.outputs, dtype=torch.float64)
    bounds = PartBounds(analysis, Functions(numbers, numbers, start, nothing, Mixture(rows, start)))
    parts, random = bounds.roots(), torch.Generator().manual_seed(0)
    for _ in range(3):
        before, places, inside = bounds.boxes(parts), bounds.columns.at, {}
        for point in places:
            low, high = before[graph.nodes[point[0]].inputs[0]]
            place = places[point][bounds.functions.images[parts.functions]]
            inside[point] = (low < place) & (place < high)
        parts = parts.halves(torch.multinomial(bounds.columns.gather(inside).double(), 1, generator=random)[:, 0])
        boxes = bounds.boxes(parts)
        for node, (low, high) in before.items():
            (right, left), (above, below) = (end.chunk(2) for end in boxes[node])
            assert (left == low).all()
            assert (above == high).all()
            # Halves are the whole box, or meet in a place within it.
            assert ((below == right) & (low < right) & (right < high) | (right == low) & (below == high)).all()
    multipliers = torch.rand(parts.signs.shape, generator=random, dtype=torch.float64)
    sides, boxes = bounds.sides(parts), bounds.boxes(parts)
    assert sides
    for node, pairs in bounds.subtracted(bounds.functions.images[parts.functions], sides, multipliers).items():
        low, high = (end[:, None] for end in boxes[graph.nodes[node].inputs[0]])
        for multiple, place in pairs:
            assert multiple.any()
            for end in (low, high):
                assert (multiple * (end - place[:, None])).min() >= 0


@pytest.mark.slow
def test_a_kink_that_is_not_at_zero_is_subtracted_where_it_lies() -> None:
    """clamp(z, 1, 1.5) + z/2 for z = 2x + 1/2 in [0.5, 2.5], least at z = 0.5 alone, to the left of both kinks."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.Hardtanh(1.0, 1.5), nn.Linear(2, 1)).double()
    # The second neuron, z/10 + 1.1, stays between the kinks.
    model[1].weight.data = torch.tensor([[2.0], [0.2]], dtype=torch.float64)
    model[1].bias.data = torch.tensor([0.5, 1.15], dtype=torch.float64)
    model[3].weight.data = torch.tensor([[1.0, 5.0]], dtype=torch.float64)
    model[3].bias.data = torch.tensor([-5.5], dtype=torch.float64)
    x = torch.full((1, 1, 1, 1), 0.5).double()
    assert model(torch.zeros_like(x)).item() == pytest.approx(1.25)
    analysis = analyse(capture(model, x), LpBall(x, 0.5), "crown")

    for truth in (-1e-4, 1e-2):
        shift = torch.tensor([truth - 1.25], dtype=torch.float64)
        found = least(analysis, shift, Effort(parts=32, batch=4, steps=10))
        assert found.item() <= truth + 1e-9
    assert found.item() > 0


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parts_tighten_every_row_and_score_and_no_point_leaves(norm: float, dtype: torch.dtype) -> None:
    graph, x, eps = captured("conv", trained=True), images(), 2 * RADII[norm]
    assert graph.module is not None
    ball = LpBall(x, eps, norm)
    rows, shift = torch.tensor([[1.0, -1.0, 0.0, 0.5], [0.0, 0.0, 1.0, -2.0]]), torch.tensor([0.25, -3.0])
    logits = graph.module(sampled(x, eps, norm, 2000).flatten(0, 1)).view(2000, len(x), 4).detach()
    values = logits @ rows.T.double() + shift
    plain = bound(graph, ball, specification=(rows, shift), dtype=dtype)
    found = bound(graph, ball, specification=(rows, shift), dtype=dtype, parts=12)
    assert (found.lower <= values.amin(0) + 1e-9).all()
    assert (found.upper >= values.amax(0) - 1e-9).all()
    assert (found.width < 0.97 * plain.width).all()
    assert found.method == "crown with branch and bound"
    for name in ("energy", "msp"):
        score = score_by_name(name)
        scores = score(logits.flatten(0, 1)).view(2000, len(x))
        plain, found = (bound(graph, ball, score=score, dtype=dtype, parts=parts) for parts in (None, 12))
        assert (found.lower <= scores.amin(0) + 1e-9).all()
        assert (found.upper >= scores.amax(0) - 1e-9).all()
        assert (found.width < 0.99 * plain.width).all()


@pytest.mark.slow
def test_rows_and_images_are_bounded_as_by_themselves_and_alternatives_no_worse_than_each() -> None:
    """What shares a batch does not mix; of alternatives every part takes the better mean."""
    graph, x = captured("conv", trained=True), images()
    analysis = analyse(graph, LpBall(x, 0.1), "crown")
    rows = torch.eye(4, dtype=torch.float64).expand(2, -1, -1)
    effort = Effort(parts=8, batch=64)
    together = branched_rows(analysis, rows, None, effort)
    for image in range(2):
        alone = analyse(graph, LpBall(x[image : image + 1], 0.1), "crown")
        for row in range(4):
            own = branched_rows(alone, rows[:1, row : row + 1], None, effort)
            torch.testing.assert_close(own.lower[0, 0], together.lower[image, row], rtol=0.02, atol=0.02)
            torch.testing.assert_close(own.upper[0, 0], together.upper[image, row], rtol=0.02, atol=0.02)
    family = Mixture(rows, torch.zeros(2, 4, dtype=torch.float64))
    numbers, nothing = torch.arange(2), torch.full((2,), -math.inf, dtype=torch.float64)
    mixed = Functions(numbers, numbers, family.start(analysis.lower_rows(rows)), nothing, family)
    least_of_means = branched_least(analysis, mixed, effort, target=math.inf)
    highest = graph(x).amax(1)
    assert (least_of_means > analysis.lower_rows(rows).amax(1) - 0.02).all()
    assert (least_of_means <= highest).all()


def test_time_ends_the_search_and_progress_adds_up() -> None:
    graph, x = captured("conv", trained=True), images()
    moved: list[float] = []
    begin = time.monotonic()
    bound(graph, LpBall(x, 0.2), score=Energy(), timeout=0.2, advance=moved.append)
    assert time.monotonic() - begin < 10
    assert sum(moved) == pytest.approx(len(x))
    with pytest.raises(CertoodError, match="no branch and bound"):
        bound(graph, LpBall(x, 0.2), engine="auto-lirpa", parts=4)
    with pytest.raises(CertoodError, match="at least one part"):
        bound(graph, LpBall(x, 0.2), parts=0)
