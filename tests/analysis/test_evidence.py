"""Every registered evidence: its declarations, the inequalities, and its values against a grid of all images of a network."""

import copy
import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certood.analysis.bounds import Graph, LpBall, bound, capture
from certood.analysis.bounds.operations.linear import Linear
from certood.analysis.certification import certify, question_of
from certood.analysis.evidence import balls
from certood.analysis.evidence.attacks import distances, generators
from certood.analysis.evidence.base import Evidence, Known
from certood.analysis.evidence.combined import Combined
from certood.analysis.evidence.nearest import attack_radii
from certood.analysis.evidence.quantities import Quantity, column
from certood.analysis.evidence.registry import EVIDENCE, evidence_for, quantities, register
from certood.analysis.evidence.sandwich import violations
from certood.analysis.evidence.smoothing import MedianSmoothing
from certood.analysis.evidence.verdicts import verdicts
from certood.analysis.question import Question
from certood.analysis.records import AtRadius, Certificate, append_certificates, columns, read_certificates
from certood.analysis.reporting.tables import table_columns
from certood.analysis.requirements import check_names, parse_requirement
from certood.analysis.settings import Settings
from certood.analysis.summary import entry_numbers, summarise
from certood.detector import Detector
from certood.errors import CertoodError
from certood.models.classifier import Normalise
from certood.scores import SCORES, Energy, Score, score_by_name
from tests.analysis.networks import NORMS, captured, images
from tests.quick import first_is_quick

DUAL = {math.inf: 1, 2: 2, 1: math.inf}
EPS = {math.inf: (0.05, 0.01, 0.15), 2: (0.06, 0.01, 0.2), 1: (0.08, 0.01, 0.3)}
SMOOTHING = MedianSmoothing(sigma=0.1, samples=100, confidence=0.95)
ALL = [*EVIDENCE, Combined]


def detector_of(
    model: nn.Module, shape: tuple[int, int, int], threshold: float, score: Score | None = None
) -> Detector:
    return Detector(model.eval(), score or Energy(), threshold, "test", shape, ("a", "b", "c"), (0.0,), (1.0,))


def plane(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A network of images of two pixels, all of which a grid can try."""
    torch.manual_seed(2)
    layers = nn.Sequential(
        Normalise([0.5], [0.25]), nn.Flatten(), nn.Linear(2, 12), activation(), nn.Linear(12, 12), activation(),
        nn.Linear(12, 3),
    )  # fmt: skip
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2.5)
    return layers


@cache
def graph_of_plane(activation: type[nn.Module] = nn.ReLU) -> Graph:
    """Captured once: torch.export takes longer than all that is asked of so small a network."""
    return capture(plane(activation), toys())


def certificates(
    graph: Graph, detector: Detector, x: Tensor, settings: Settings | None = None, **about: Any
) -> list[Certificate]:
    """The certificates of a detector whose network is captured already."""
    settings = settings or Settings()
    question = Question(graph, detector.output_score, float(detector.threshold or 0.0), settings.norm)
    return certify(detector, x, settings=settings, question=question, **about)


class Grid:
    """Scores and gradient norms of all images of two pixels, on a grid, by the module and torch's own gradients."""

    SIDE = 201

    def __init__(self, model: nn.Module, score: Score, norm: float) -> None:
        axis = torch.linspace(0, 1, self.SIDE, dtype=torch.float64)
        self.points = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
        self.norm, self.step = norm, float(torch.full((2,), 1 / (self.SIDE - 1)).double().norm(norm))
        points = self.points.clone().requires_grad_()
        scores = score(copy.deepcopy(model).double()(points))
        (slopes,) = torch.autograd.grad(scores.sum(), points)
        self.scores, self.slopes = scores.detach(), slopes.flatten(1).norm(DUAL[norm], dim=1)

    def away(self, image: Tensor) -> Tensor:
        return distances(self.points, image[None].double().expand_as(self.points), self.norm)


def toys() -> Tensor:
    torch.manual_seed(5)
    return torch.rand(10, 1, 1, 2)


def scores_of(model: nn.Module, x: Tensor, score: Score) -> Tensor:
    with torch.no_grad():
        return score(copy.deepcopy(model).double()(x.double()))


# Declarations


def test_names_are_told_apart_and_declarations_make_sense() -> None:
    every = [quantity for kind in ALL for quantity in kind.quantities]
    names = [name for quantity in every for name in {quantity.name, quantity.title}]
    assert len(names) == len(set(names))
    assert {"gradient_norm", "lipschitz_sampled", "lipschitz_certified", "radius_gradient", "radius_lipschitz",
            "radius_certified", "radius_attack"} <= set(columns((0.1,)))  # fmt: skip
    for quantity in every:
        assert quantity.label
        assert quantity.per_eps or not quantity.first, quantity.name
        assert (quantity.kind == "probabilistic") == (quantity in quantities(smoothed=True)), quantity.name
        # An estimate is called one, and nothing else that is no proof is called certified.
        assert ("certified" in quantity.title) <= (quantity.kind == "certified"), quantity.name
        assert (quantity.kind == "estimate") <= ("(estimate)" in quantity.label), quantity.name


@cache
def computed(kind: str, *, smoothed: bool) -> tuple[Known, dict[type[Evidence], Mapping[str, Tensor]]]:
    """What every evidence says of the same images."""
    model, x = plane(), toys().double()
    threshold = float(scores_of(model, x, Energy()).median()) + 1e-4
    settings = Settings(
        eps=EPS[2], norm=2, method="smoothing" if smoothed else "crown", parts=4, attack_steps=6, samples=4,
        smoothing=SMOOTHING, second_attack=None if smoothed else "foolbox",
    )  # fmt: skip
    detector = detector_of(model, (1, 1, 2), threshold)
    question = (
        question_of(detector, 2, smoothed=True) if smoothed else Question(graph_of_plane(), Energy(), threshold, 2)
    )
    scores = question.scores(x.float() if smoothed else x).detach()
    known = Known(kind, range(10), scores, (threshold - scores).abs(), scores <= threshold)
    found: dict[type[Evidence], Mapping[str, Tensor]] = {}
    for one in evidence_for(settings):
        before = x.clone()
        found[type(one)] = one(question, x, known)
        assert torch.equal(x, before)
        known.values.update(found[type(one)])
        known.quantities += one.quantities
    return known, found


@pytest.mark.parametrize("kind", first_is_quick(["id", "ood"]))
@pytest.mark.parametrize("evidence", ALL, ids=lambda kind: kind.__name__)
def test_evidence_returns_what_it_declares(evidence: type[Evidence], kind: str) -> None:
    known, found = computed(kind, smoothed=evidence.smoothed)
    for quantity in evidence.quantities:
        value = found[evidence][quantity.name]
        assert value.dtype == torch.float64, quantity.name
        assert value.shape == ((3, 10) if quantity.per_eps else (10,)), quantity.name
        assert not value[..., known.right].isnan().any(), quantity.name
        assert not value.requires_grad
        # Every image has its own value.
        assert len(value.unique()) > 3 or quantity.name == "lipschitz_global", quantity.name


# Values


# Every norm with every score, and both with ID images and outliers; one case is quick.
WANTED = [
    pytest.param(norm, score, kind, marks=[] if row == column == 0 else [pytest.mark.slow])
    for row, norm in enumerate(NORMS)
    for column, score in enumerate(("energy", "msp", "max-logit"))
    for place, kind in enumerate(("id", "ood"))
    if (row + column + place) % 2 == 0
]


@pytest.mark.parametrize(("norm", "score", "kind"), WANTED)
def test_every_quantity_against_a_grid_of_all_images(norm: float, score: str, kind: str) -> None:
    """What a quantity declares is true of the grid, and what is certified or found is not far from it."""
    model, x, chosen = plane(), toys(), score_by_name(score)
    threshold = float(scores_of(model, x, chosen).median()) + 1e-4
    grid = Grid(model, chosen, norm)
    settings = Settings(eps=EPS[norm], norm=norm, parts=4, tolerance=0.01)
    records = certificates(graph_of_plane(), detector_of(model, (1, 1, 2), threshold, chosen), x, settings, kind=kind)
    assert {record.correct for record in records} == {True, False}
    ratios, missed = [], []
    for image, record in zip(x, records, strict=True):
        assert record.violations == 0
        away = grid.away(image)
        changed = (grid.scores <= threshold) != record.accepted
        # The nearest point of another decision is at most a step of the grid before the first grid point that has it.
        radius = float(away[changed].min()) if record.correct else 0.0
        assert record.score == pytest.approx(float(scores_of(model, image[None], chosen)), abs=1e-12)
        if record.correct:
            ratios.append((record.radius_certified / radius, record.radius_attack / (radius + grid.step)))
            assert record.radius_attack >= radius - 2 * grid.step
            # What an attack finds within an ε it finds as a distance too.
            assert record.radius_attack <= min(
                (part.eps for part in record.at if part.verdict == "refuted"), default=math.inf
            )
        for quantity in quantities(smoothed=False):
            for part in record.at:
                value = getattr(part if quantity.per_eps else record, quantity.name)
                ball = away <= (part.eps if quantity.per_eps else math.inf)
                case = (quantity.name, part.eps, record.index, value)
                match quantity.of, quantity.side, quantity.kind:
                    case "radius", "lower", "certified":
                        assert value <= radius + 1e-12, case
                    case "lipschitz", "upper", "certified":
                        assert value >= float(grid.slopes[ball].max()) * (1 - 1e-9), case
                    case "lipschitz", "lower", "found":
                        assert value <= float(grid.slopes[away <= part.eps + 2 * grid.step].max()) * 1.05, case
                    case "score", "lower", "certified":
                        assert value <= float(grid.scores[ball].min()) + 1e-9, case
                    case "score", "upper", "certified":
                        assert value >= float(grid.scores[ball].max()) - 1e-9, case
                    case "score", _, "found":
                        slack = 2 * grid.step * float(grid.slopes.max())
                        low, high = float(grid.scores[ball].min()), float(grid.scores[ball].max())
                        assert low - slack <= value <= high + slack, case
                        missed.append(max(0.0, (high - value if kind == "id" else value - low) - slack))
        for part in record.at:
            proved = {"certified": radius > part.eps, "refuted": radius <= part.eps + grid.step, "unknown": True}
            assert proved[part.verdict], (record.index, part.eps)
    certified, attacked = (sorted(part)[len(part) // 2] for part in zip(*ratios, strict=True))
    assert certified > 0.6
    assert attacked < 1.05
    assert sorted(missed)[len(missed) // 2] == 0


def test_estimates_by_hand() -> None:
    """S = −w·x: the gradient is −w everywhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))
    weight, bias = torch.tensor([[3.0, -4.0]]), torch.tensor([0.5])
    model[1].weight.data, model[1].bias.data = weight, bias
    x = torch.tensor([[[[0.5, 0.5]]]])
    graph = capture(model, x)
    for norm, size in ((math.inf, 7.0), (2, 5.0), (1, 4.0)):
        (record,) = certificates(graph, detector_of(model, (1, 1, 2), 0.2), x, Settings(eps=(0.01,), norm=norm))
        assert record.score == pytest.approx(0.0)
        assert record.gradient_norm == pytest.approx(size)
        assert record.lipschitz_sampled == record.at[0].sampled == pytest.approx(size)
        assert record.lipschitz_clever == pytest.approx(size)
        assert record.lipschitz_certified == record.at[0].lipschitz == pytest.approx(size)
        assert record.lipschitz_global == pytest.approx(size)
        assert record.radius_gradient == pytest.approx(0.2 / size)
        assert record.radius_global == pytest.approx(0.2 / size)
        assert record.radius_certified == pytest.approx(0.2 / size, rel=0.01)
        assert record.radius_lipschitz == record.radius_step == pytest.approx(0.01)
        assert record.radius_attack == pytest.approx(0.2 / size, rel=0.02)
        # Under the eye of the ball, S ± ε‖w‖.
        assert record.at[0].upper == pytest.approx(0.01 * size)
        assert record.at[0].lower == pytest.approx(-0.01 * size)
        assert record.at[0].attacked == pytest.approx(0.01 * size)


class SortingNetwork(nn.Module):
    """Orthogonal matrices with pairs sorted between them: of l2 constant 1, and loose for linear relaxations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(4)])
        self.last = nn.Linear(16, 1)
        for layer in (*self.layers, self.last):
            nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).unflatten(1, (-1, 2)).sort(2).values.flatten(1)
        logits: Tensor = self.last(x)
        return logits


def test_bounds_of_the_score_use_the_lipschitz_constant_where_it_says_more() -> None:
    torch.manual_seed(0)
    model, x = SortingNetwork().double(), 0.4 + 0.2 * torch.rand(4, 1, 4, 4).double()
    detector = detector_of(model, (1, 4, 4), 0.2)
    for record in certify(detector, x, settings=Settings(eps=(0.3,), norm=2)):
        part = record.at[0]
        assert record.lipschitz_global == pytest.approx(1, rel=1e-5)
        assert record.score - 0.3 * (1 + 1e-5) <= part.lower <= part.attacked <= record.score + 0.3 * (1 + 1e-5)
    ball = LpBall(x, 0.3, 2.0)
    crown = bound(capture(model, x), ball, "crown", score=Energy())
    assert (crown.width > 0.61).all(), "linear bounds alone are looser"


@pytest.mark.parametrize("count", [40, 400])
def test_order_statistics_of_smoothing_are_the_exact_ones(count: int) -> None:
    """Bounds of the quantiles and of the share, by summing binomial probabilities over the samples that were really drawn."""
    drawn: list[Tensor] = []

    class Recorded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1:  # beside the samples some are scored once more alone
                drawn.append(x[:, 0, 0, :1])
            return x[:, 0, 0, :1]

    def at_most(number: int, share: float) -> float:
        return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(number + 1))

    confidence, sigma = 0.9, 0.2
    smoothing = MedianSmoothing(sigma, count, confidence)
    image = torch.tensor([[[0.5, 0.5]]])
    for eps in (0.0, 0.05, 0.2):
        drawn.clear()
        ((low, high),) = smoothing.quantile_bounds(Recorded(), Energy(), image, [eps], 0)
        ordered = (-torch.cat(drawn)).flatten().sort().values.tolist()
        share = 0.5 * (1 + math.erf(eps / sigma / math.sqrt(2)))
        # The k-th smallest sample is at or above the quantile p unless k or more samples lie below it: P(Bin ≥ k) ≤ 1 − c.
        upper = [k for k in range(1, count + 1) if 1 - at_most(k - 1, share) <= 1 - confidence]
        assert high == (ordered[upper[0] - 1] if upper else math.inf)
        # It is at or below the quantile 1 − p unless fewer than k samples do not exceed it: P(Bin ≤ k − 1) ≤ 1 − c.
        lower = [k for k in range(1, count + 1) if at_most(k - 1, 1 - share) <= 1 - confidence]
        assert low == (ordered[lower[-1] - 1] if lower else -math.inf)
    drawn.clear()
    accepted, radius = smoothing.radius(Recorded(), Energy(), -0.3, image, 0)
    samples = -torch.cat(drawn).flatten()[-count:]
    kept = int((samples <= -0.3).sum())
    assert accepted
    assert radius > 0
    # Clopper and Pearson: at this share so many or more kept samples have the probability 1 − c.
    share = 0.5 * (1 + math.erf(radius / sigma / math.sqrt(2)))
    assert 1 - at_most(kept - 1, share) == pytest.approx(1 - confidence, abs=1e-6)


def test_bounds_of_the_smoothed_score_are_wider_on_larger_balls() -> None:
    known, _ = computed("id", smoothed=True)
    order = torch.tensor(EPS[2]).argsort()
    lower, upper = known["smoothed_lower"][order], known["smoothed_upper"][order]
    assert (lower < upper).all()
    assert (lower.diff(dim=0) <= 0).all()
    assert (upper.diff(dim=0) >= 0).all()


def test_the_constants_of_the_first_radius_do_not_depend_on_the_others() -> None:
    detector, first = detector_of(plane(nn.Tanh), (1, 1, 2), 0.0), []
    for eps in ((0.1,), (0.1, 0.4), (0.1, 0.01)):
        records = certificates(graph_of_plane(nn.Tanh), detector, toys(), Settings(eps=eps, attack_steps=2))
        first.append([(one.lipschitz_clever, one.lipschitz_sampled, one.at[0].attacked) for one in records])
        assert [one.lipschitz_certified for one in records] == [one.at[0].lipschitz for one in records]
    assert first[0] == first[1] == first[2]


# The sandwich


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
@pytest.mark.parametrize("name", first_is_quick(["conv", "residual", "silu"]))
def test_no_inequality_is_violated_on_random_networks(name: str, norm: float) -> None:
    graph, x = captured(name, trained=True), images(6).float()
    model = graph.module
    scores = [name for name in SCORES.names() if name != "absent-class"]
    for place, score in enumerate(scores, start=NORMS.index(norm)):
        chosen = score_by_name(score)
        threshold = float(scores_of(model, x, chosen).median()) + 1e-6
        settings = Settings(eps=(0.02, 0.005), norm=norm, attack_steps=6, samples=4)
        # Over the norms every score is asked of both kinds.
        kind = ("id", "ood")[place % 2]
        records = certificates(graph, detector_of(model, (2, 8, 8), threshold, chosen), x, settings, kind=kind)
        assert [record.violations for record in records] == [0] * 6, score


def known_of(values: Mapping[str, list[float] | list[list[float]]], kind: str = "id") -> Known:
    """Two images with scores 0 and γ = 1, decided correctly for `kind` id."""
    every = [quantity for quantity in quantities() if quantity.name in values]
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    scores = torch.zeros(2, dtype=torch.float64)
    return Known(kind, range(2), scores, scores + 1, scores <= 1, values=tensors, quantities=every)


CASES: dict[str, tuple[dict[str, list[float] | list[list[float]]], list[int]]] = {
    "radii in order": ({"radius_direct": [0.1, 0.2], "radius_attack": [0.1, math.inf]}, [0, 0]),
    "certified above attack": ({"radius_direct": [0.11, 0.2], "radius_attack": [0.1, 0.3]}, [1, 0]),
    "every certified radius": ({"radius_global": [0.1, 0.4], "radius_attack": [0.1, 0.3]}, [0, 1]),
    "an estimate is not compared": ({"radius_gradient": [9.0, 9.0], "radius_attack": [0.1, 0.3]}, [0, 0]),
    "constants in order": ({"gradient_norm": [1.0, 2.0], "lipschitz": [[1.0, 2.0], [3.0, 3.0]]}, [0, 0]),
    "norm above a constant": ({"gradient_norm": [1.5, 2.0], "lipschitz": [[1.0, 2.0], [1.2, 3.0]]}, [2, 0]),
    "sample above the constant": ({"sampled": [[1.0, 2.0], [5.0, 2.0]], "lipschitz": [[1.0, 2.0], [4.0, 3.0]]}, [1, 0]),
    "sample above the global one": ({"sampled": [[1.0, 2.0], [5.0, 2.0]], "lipschitz_global": [4.0, 4.0]}, [1, 0]),
    "the larger ball is another one": ({"sampled": [[1.0, 1.0], [5.0, 2.0]], "lipschitz": [[2.0, 2.0], [6.0, 6.0]]}, [0, 0]),
    "score below its bound": ({"lower": [[0.1, -0.1]], "upper": [[1.0, 1.0]]}, [1, 0]),
    "score above its bound": ({"lower": [[-1.0, -1.0]], "upper": [[0.1, -0.1]]}, [0, 1]),
    "attacked outside": ({"lower": [[-1.0, -1.0]], "upper": [[0.1, 0.1]], "attacked": [[0.2, -2.0]]}, [1, 1]),
    "infinite bounds": ({"lower": [[-math.inf] * 2], "upper": [[math.inf] * 2]}, [0, 0]),
    "an infinite constant": ({"lipschitz": [[math.inf] * 2], "sampled": [[1.0, 1.0]]}, [0, 0]),
    "not a number": ({"lower": [[math.nan, -1.0]], "upper": [[1.0, 1.0]]}, [1, 0]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_violations_by_hand(case: str) -> None:
    values, expected = CASES[case]
    assert violations(known_of(values)).tolist() == expected


def test_verdicts_by_hand() -> None:
    settings = Settings(eps=(0.1, 0.3))
    known = known_of({"radius_certified": [0.1, 0.2], "radius_attack": [0.4, 0.3]})
    assert verdicts(1.0, known, settings) == [["certified", "certified"], ["unknown", "refuted"]]
    known = known_of(
        {"lower": [[-9.0, -9.0]] * 2, "upper": [[1.0, 0.0], [1.1, 0.0]], "attacked": [[0.9, 0.0], [1.1, 0.0]]}
    )
    assert verdicts(1.0, known, settings) == [["certified", "certified"], ["refuted", "certified"]]
    # A point that was evaluated outweighs a bound.
    known = known_of({"radius_certified": [0.5, 0.5], "radius_attack": [0.2, 0.6]})
    assert verdicts(1.0, known, settings) == [["certified", "certified"], ["refuted", "certified"]]
    # An outlier at a score of 0 is accepted, which is wrong.
    assert verdicts(1.0, known_of({"radius_certified": [0.5, 0.5]}, "ood"), settings)[0] == ["refuted", "refuted"]
    # Rejected outliers need S > γ: at γ itself they would be accepted.
    known = known_of({"lower": [[-1.0, -0.9]] * 2, "attacked": [[0.0, -1.0]] * 2}, "ood")
    known.accepted = known.scores <= -1.0
    assert verdicts(-1.0, known, settings)[0] == ["unknown", "refuted"]


def test_a_local_constant_is_never_above_the_global_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is known of a ball its constant is that of all images, and certifies as much."""
    monkeypatch.setattr(balls, "local_lipschitz", lambda question, analysis, ball: torch.full_like(ball.eps, math.inf))
    settings = Settings(eps=(0.1, 0.01), attack_steps=2)
    for record in certificates(graph_of_plane(), detector_of(plane(), (1, 1, 2), 0.0), toys(), settings):
        assert [part.lipschitz for part in record.at] == [record.lipschitz_global] * 2
        assert record.lipschitz_certified == record.lipschitz_global < math.inf
        assert record.violations == 0


# The network itself is the witness


@pytest.mark.parametrize("node", range(3))
def test_a_wrong_copy_is_never_a_clean_certificate(node: int) -> None:
    """A graph whose weights are off by a tenth of a per cent contradicts the module in every record."""
    model, x = plane(), toys()
    threshold = float(scores_of(model, x, Energy()).median()) + 1e-4
    detector = detector_of(model, (1, 1, 2), threshold)
    question = Question(graph_of_plane(), Energy(), threshold)
    nodes = list(question.graph.nodes)
    place = [place for place, one in enumerate(nodes) if isinstance(one.operation, Linear)][node]
    operation = nodes[place].operation
    assert isinstance(operation, Linear)
    nodes[place] = replace(nodes[place], operation=Linear(1.001 * operation.weight, operation.bias))
    wrong = replace(question, graph=replace(question.graph, nodes=tuple(nodes)))
    for eps in (1e-4, 0.1):
        settings = Settings(eps=(eps,), attack_steps=4, samples=2)
        honest = certify(detector, x, settings=settings, question=question)
        false = certify(detector, x, settings=settings, question=wrong)
        assert sum(record.violations for record in honest) == 0
        assert all(record.violations > 0 for record in false)
        assert [record.score for record in false] == [record.score for record in honest]
        assert [record.gradient_norm for record in false] == [record.gradient_norm for record in honest]


class Opaque(nn.Module):
    """A network without gradients of its own, as one that another library runs; it writes into its input as well."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.evaluated = copy.deepcopy(model).double(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.evaluated += 1
        with torch.no_grad():
            logits: Tensor = self.model(x)
            x.zero_()
        return logits


def test_an_attack_on_a_network_without_gradients_follows_the_graph_and_counts_what_the_network_says() -> None:
    model, x = plane(), toys().double()
    scores = scores_of(model, x, Energy())
    graph = graph_of_plane()
    question = Question(graph, Energy(), float(scores.median()) + 1e-4)
    opaque = Opaque(model)
    other = replace(question, graph=replace(graph, module=opaque))
    accepted = scores <= question.threshold
    zero = torch.zeros(10, dtype=torch.float64)
    before = x.clone()
    one, _ = attack_radii(question, x, accepted, zero, random=generators(0, range(10)))
    two, points = attack_radii(other, x, accepted, zero, random=generators(0, range(10)))
    torch.testing.assert_close(one, two)
    assert torch.equal(x, before)
    assert opaque.evaluated > 10
    reached = two.isfinite()
    assert reached.sum() > 7
    assert ((scores_of(model, points, Energy()) <= question.threshold) != accepted)[reached].all()
    # A network that disagrees with its graph about all decisions is never said to be changed.
    stubborn = replace(question, graph=replace(graph, module=Constant()))
    radii, _ = attack_radii(stubborn, x, accepted & True, zero, random=generators(0, range(10)))
    assert radii[accepted].isinf().all()


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 3), 1e3, dtype=torch.float64)


def test_the_difference_to_float32_is_that_of_the_module() -> None:
    model, x = plane(), toys()
    with torch.no_grad():
        own = Energy()(model(x).double())
    expected = (own - scores_of(model, x, Energy())).abs()
    detector = detector_of(model, (1, 1, 2), float(own.median()))
    records = certificates(graph_of_plane(), detector, x, Settings(attack_steps=2, samples=2))
    assert expected.max() > 0
    assert [record.float32_difference for record in records] == expected.tolist()
    assert summarise(records, (0.01,))["float32_difference"] == float(expected.max())


# Adding evidence


@pytest.fixture
def corner() -> Iterator[type[Evidence]]:
    """An evidence as somebody would add it: the score of a corner of the ball."""

    @register
    class Corner(Evidence):
        quantities = (
            Quantity("corner", of="score", side="upper", kind="found", per_eps=True, label="corner", head="S corner"),
            Quantity(
                "radius_tiny", of="radius", side="lower", kind="certified", label="tiny", head="tiny", lowest=False
            ),
        )
        offset = 0.0

        def __call__(self, question: Question, images: Tensor, known: Known) -> Mapping[str, Tensor]:
            with torch.no_grad():
                rows = [question.scores((images + eps).clamp(0, 1)) + self.offset for eps in self.settings.eps]
            return {"corner": torch.stack(rows), "radius_tiny": torch.full_like(known.scores, 1e-9)}

    yield Corner
    EVIDENCE.remove(Corner)


def corner_records(eps: tuple[float, ...], kind: str = "ood") -> list[Certificate]:
    model, x = plane(), toys()
    threshold = float(scores_of(model, x, Energy()).min()) - 0.5
    settings = Settings(eps=eps, attack_steps=4, samples=2)
    return certificates(graph_of_plane(), detector_of(model, (1, 1, 2), threshold), x, settings, kind=kind, name="toys")


def test_new_evidence_is_everywhere_by_its_registration(corner: type[Evidence], tmp_path: Path) -> None:
    eps = (0.02, 0.1)
    records = corner_records(eps)
    assert [record.violations for record in records] == [0] * 10
    path = tmp_path / "certificates.csv"
    append_certificates(path, records, eps)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row[column("corner", 0.1)]) for row in rows] == [record.at[1].corner for record in records]
    assert read_certificates(path, eps, continued=True)[0] == records
    entry = summarise(records, eps)["sets"]["toys"]
    assert entry["median_corner"][1] == pytest.approx(
        float(torch.tensor([r.at[1].corner for r in records]).double().quantile(0.5))
    )
    assert {"median_corner", "median_radius_tiny"} <= set(entry_numbers("ood", smoothed=False, inside=False))
    check_names(
        [parse_requirement("median_radius_tiny>=0"), parse_requirement("median_corner@toys>=0")], {"toys": "ood"}
    )
    for table, keys in (("theory", ("corner", "radius_tiny")), ("radii", ("corner",))):
        heads = {one.key: one.head for one in table_columns()[table]}
        assert [heads.get(key) for key in keys] == ["S corner", "tiny"][: len(keys)]
    with pytest.raises(CertoodError, match=r"there is corner, radius_tiny"):
        register(corner)


@pytest.mark.usefixtures("corner")
def test_metrics_take_the_worst_of_all_scores_that_are_found() -> None:
    """AAUC over one ID image at 1 and one outlier at 3, of which two attacks find other scores; either may be the worse."""
    for attacked, other, expected in ((2.0, 0.5, 0.0), (0.5, 2.0, 0.0), (2.0, 2.5, 1.0)):
        at = AtRadius(0.1, "unknown", {"attacked": attacked, "corner": other, "lower": 0.0, "upper": 9.0})
        outlier = Certificate("out", "ood", 0, 3.0, 1.5, 1.5, False, at=(at,))
        for own, highest in (((1.0, 2.2), 2.2), ((2.2, 1.0), 2.2)):
            at = AtRadius(0.1, "unknown", {"attacked": own[0], "corner": own[1], "lower": 0.0, "upper": 9.0})
            inside = Certificate("in", "id", 0, 1.0, 1.5, 0.5, True, at=(at,))
            entry = summarise([inside, outlier], (0.1,))["sets"]["out"]
            assert entry["aauc"] == [expected]
            assert entry["both_sided"]["aauc"] == [float(min(attacked, other) > highest)]


def test_unsound_new_evidence_is_counted(corner: type[Evidence]) -> None:
    corner.offset = -100.0  # type: ignore[attr-defined]
    assert all(record.violations for record in corner_records((0.02,)))
    # What is found counts in verdicts: such a score would be accepted.
    assert {record.verdict for record in corner_records((0.02,))} == {"refuted"}


def test_a_file_with_other_quantities_is_read_and_not_continued(corner: type[Evidence], tmp_path: Path) -> None:
    records = corner_records((0.02,))
    path = tmp_path / "certificates.csv"
    append_certificates(path, records, (0.02,))
    EVIDENCE.remove(corner)
    try:
        found, _ = read_certificates(path)
        assert found[0].at[0].corner == records[0].at[0].corner
        assert found[0].radius_tiny == records[0].radius_tiny
        with pytest.raises(CertoodError, match="other columns"):
            read_certificates(path, continued=True)
        with pytest.raises(AttributeError, match="no 'radius_tiny'; quantities are gradient_norm"):
            _ = corner_records((0.02,))[0].radius_tiny
    finally:
        EVIDENCE.append(corner)
