"""Radii, attacks, Lipschitz constants and whole certificates: closed forms, the inequalities that must hold, bad input."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from certood.analysis.bounds import LpBall, analyse, bound, capture
from certood.analysis.bounds.operations.convolution import Convolution, convolution_norm
from certood.analysis.certification import certify, question_of
from certood.analysis.evidence.attacks import ascend, distances, generators, project, steepest_step
from certood.analysis.evidence.direct import _largest, certified_radii
from certood.analysis.evidence.estimates import gradient_norms
from certood.analysis.evidence.lipschitz import (
    global_lipschitz,
    local_lipschitz,
    nested,
)
from certood.analysis.evidence.lipschitz_radii import min_rule_radius, step_rule_radius
from certood.analysis.evidence.nearest import attack_radii
from certood.analysis.evidence.smoothing import MedianSmoothing
from certood.analysis.question import Question
from certood.analysis.recheck import unsound
from certood.analysis.records import append_certificates, read_certificates
from certood.analysis.settings import Settings, with_fast_rows
from certood.analysis.summary import summarise
from certood.detector import Detector
from certood.errors import CannotCertify, CertoodError, RunDirectoryError
from certood.models import build_model
from certood.models.classifier import Normalise
from certood.scores import MSP, SCORES, Energy, MaxLogit, score_by_name
from tests.analysis.networks import NETWORKS, NORMS, SHAPE, captured, images, network
from tests.quick import first_is_quick

DUAL = {math.inf: 1, 2: 2, 1: math.inf}


def linear_detector() -> tuple[nn.Module, torch.Tensor]:
    """S = −w·x for one logit: every constant is known."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 1)).double()
    return model, model[1].weight.detach()[0]


def detector(name: str = "conv", threshold: float | None = 0.0) -> Detector:
    model = network(name, trained=True).float()
    with torch.no_grad():
        middle = float(Energy()(model(images(32).float())).median())
    return Detector(
        model=model,
        score=Energy(),
        threshold=None if threshold is None else middle,
        architecture="test",
        input_shape=SHAPE,
        classes=("a", "b", "c", "d"),
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
    )


@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
@pytest.mark.parametrize("norm", NORMS)
def test_radii_of_a_linear_score_are_margin_over_dual_norm(norm: float, method: str) -> None:
    model, weight = linear_detector()
    x = 0.5 + 0.1 * (images(4) - 0.5)
    graph = capture(model, x)
    scores = Energy()(model(x)).detach()
    # Small margins, so that no ball reaches the border of the pixel range.
    for shift in (0.02, -0.02):
        question = Question(graph, Energy(), float(scores[0]) + shift, norm)
        accepted = scores[:1] <= question.threshold
        exact = 0.02 / weight.norm(DUAL[norm])
        certified = certified_radii(question, x[:1], accepted, method=method)
        attacked, _ = attack_radii(question, x[:1], accepted, certified, random=generators(0, [0]))
        assert 0.985 * exact <= certified <= exact * (1 + 1e-9)
        assert exact * (1 - 1e-9) <= attacked <= 1.02 * exact


@pytest.mark.parametrize("score", SCORES.names())
@pytest.mark.parametrize("norm", first_is_quick(NORMS))
def test_certified_radii_are_below_attack_radii(norm: float, score: str) -> None:
    # A median is asked of the energy alone.
    count = 16 if score == "energy" else 6
    graph, x, chosen = captured("conv", trained=True), images(count), score_by_name(score)
    scores = chosen(graph(x))
    question = Question(graph, chosen, float(scores.median()) + 1e-6, norm)
    accepted = scores <= question.threshold
    certified = certified_radii(question, x, accepted, method="crown")
    attacked, points = attack_radii(question, x, accepted, certified, random=generators(0, range(count)))
    torch.testing.assert_close(distances(points, x, norm), attacked)
    assert ((question.scores(points) <= question.threshold) != accepted).all()
    assert points.min() >= 0
    assert points.max() <= 1
    assert (certified > 0).all()
    assert (certified <= attacked * (1 + 1e-9)).all()
    if score == "energy":
        assert (certified / attacked).median() > 0.5


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point_of_the_ball(norm: float) -> None:
    torch.manual_seed(0)
    step, eps = torch.randn(20, 1, 3, 4).double(), torch.rand(20).double()
    inside = project(step, eps, norm)
    zero = torch.zeros_like(step)
    assert (distances(inside, zero, norm) <= eps * (1 + 1e-9)).all()
    for _ in range(300):
        other = project(torch.randn_like(step), eps * torch.rand(20).double(), norm)
        assert (distances(step, inside, 2) <= distances(step, other, 2) + 1e-9).all()


def test_progress_is_told_several_times_a_batch_and_comes_to_all_images() -> None:
    told: list[float] = []
    certify(detector(), images(5).float(), settings=Settings(attack_steps=2), batch_size=3, advance=told.append)
    assert len(told) >= 8
    assert max(told) < 1
    assert sum(told) == pytest.approx(5)


def test_an_attack_stays_in_the_ball_and_finds_the_corner() -> None:
    model, weight = linear_detector()
    x, eps = 0.5 + 0.0 * images(2), torch.full((2,), 0.1, dtype=torch.float64)
    best, where = ascend(lambda y: model(y)[:, 0], x, eps, math.inf, random=generators(0, range(2)))
    assert (distances(where, x, math.inf) <= 0.1 + 1e-12).all()
    torch.testing.assert_close(best, model(x)[:, 0].detach() + 0.1 * weight.abs().sum())


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_counts_where_nothing_begins_from_it(norm: float) -> None:
    x, eps = 0.5 + 0.0 * images(2), torch.full((2,), 0.1, dtype=torch.float64)
    # Flat but for one corner, which no gradient leads to.
    corner = x + steepest_step(torch.ones_like(x), norm) * 0.1
    peak = lambda y: (distances(y, corner, math.inf) < 1e-9).double() + 0.0 * y.flatten(1).sum(1)  # noqa: E731
    best, where = ascend(peak, x, eps, norm, random=generators(0, range(2)), restarts=1, starts=[corner])
    assert best.tolist() == [1, 1]
    torch.testing.assert_close(where, corner)


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "gated", "depthwise", "silu"])
def test_sampled_local_and_global_constants_are_in_order(name: str, norm: float) -> None:
    graph, x = captured(name, trained=True), images(4)
    for score in (Energy(), MaxLogit(), MSP()):
        question = Question(graph, score, 0.0, norm)
        ball = LpBall(x, 0.02, norm)
        local = local_lipschitz(question, analyse(graph, ball, "crown"), ball)
        assert (gradient_norms(question, x) <= local * (1 + 1e-9)).all()
        assert (local <= global_lipschitz(question) * (1 + 1e-6)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_operator_norms_of_convolutions_against_their_matrices(norm: float) -> None:
    torch.manual_seed(0)
    for stride, padding, dilation, groups in ((1, 1, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1), (3, 0, 1, 1), (2, 2, 2, 1)):
        weight = torch.randn(4, 4 // groups, 3, 3).double()
        operation = Convolution(weight, None, (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
        shape = torch.Size((4, 7, 6))
        basis = torch.eye(shape.numel()).double().view(-1, *shape)
        matrix = operation.forward([basis]).flatten(1).T
        order = {math.inf: math.inf, 2: 2, 1: 1}[norm]
        exact = float(torch.linalg.matrix_norm(matrix, order))
        found = convolution_norm(operation, shape, norm)
        assert exact <= found * (1 + 1e-9)
        assert found <= 1.6 * exact


def test_the_norm_of_a_convolution_of_separate_blocks_is_that_of_its_matrix() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 2, 2).double()
    operation = Convolution(weight, None, (2, 2), (0, 0), (1, 1), 1)
    exact = float(torch.linalg.matrix_norm(weight.flatten(1), 2))
    assert convolution_norm(operation, torch.Size((3, 8, 6)), 2) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("norm", "first", "last"), [(math.inf, 4.0, 2.0), (2, math.sqrt(8), math.sqrt(2)), (1, 2.0, 1.0)]
)
def test_a_global_constant_in_closed_form(norm: float, first: float, last: float) -> None:
    """Two linear layers of ones and a ReLU: the first counts by its operator norm, the last by the dual norm of a row."""
    model = nn.Sequential(Normalise([0.0], [0.5]), nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)).double()
    for layer in (model[2], model[4]):
        layer.weight.data.fill_(1.0)
    question = Question(capture(model, torch.zeros(1, 1, 2, 2)), Energy(), 0.0, norm)
    assert global_lipschitz(question) == pytest.approx(2 * first * last, rel=1e-6)


def test_radii_from_constants_by_hand() -> None:
    grid, margins = (0.1, 0.2, 0.4), torch.tensor([1.0, 0.1, 10.0, 2.0]).double()
    constants = torch.tensor([[5.0] * 4, [10.0] * 4, [20.0] * 4]).double()
    # m = 1: min(0.1, 0.2), min(0.2, 0.1), min(0.4, 0.05) → 0.1; steps: 0.5 to 0.1, then 0.5/10 → 0.15.
    # m = 2: 0.5 to 0.1, 1 to 0.2, then 0.5/20 → 0.225.
    torch.testing.assert_close(min_rule_radius(margins, grid, constants), torch.tensor([0.1, 0.02, 0.4, 0.2]).double())
    torch.testing.assert_close(
        step_rule_radius(margins, grid, constants), torch.tensor([0.15, 0.02, 0.4, 0.225]).double()
    )
    falling = torch.tensor([[9.0], [7.0], [8.0]]).double()
    assert nested(falling).flatten().tolist() == [7.0, 7.0, 8.0]


@pytest.mark.parametrize("kind", ["id", "ood"])
@pytest.mark.parametrize("norm", first_is_quick(NORMS))
def test_certificates_hold_together(norm: float, kind: str) -> None:
    eps = {math.inf: (0.02, 0.005), 2: (0.2, 0.05), 1: (0.5, 0.1)}[norm]
    records = certify(detector(), images(12).float(), kind=kind, settings=Settings(eps=eps, norm=norm))
    assert [record.index for record in records] == list(range(12))
    assert {record.verdict for record in records} <= {"certified", "refuted", "unknown"}
    for record in records:
        assert record.violations == 0
        assert record.correct == (record.accepted == (kind == "id"))
        if not record.correct:
            assert record.radius_certified == record.radius_attack == 0
            assert record.verdict == "refuted"
        assert record.radius_certified <= record.radius_attack
        assert max(record.radius_lipschitz, record.radius_step) <= record.radius_certified
        for part in record.at:
            assert part.lower <= record.score <= part.upper
            assert part.sampled <= part.lipschitz
            if part.verdict == "certified":
                assert record.radius_attack > part.eps
            if part.verdict == "refuted":
                assert record.radius_certified < part.eps


@pytest.mark.parametrize("side", first_is_quick(["upper", "lower"]))
def test_what_float32_misses_by_its_rounding_is_decided_in_float64(side: str) -> None:
    eps, kind, x = 0.06, "id" if side == "upper" else "ood", images(3)
    model, graph = detector("residual").model.double(), capture(detector("residual").model.double(), x)
    ends = [
        getattr(bound(graph, LpBall(x, eps), score=Energy(), dtype=dtype), side)
        for dtype in (torch.float32, torch.float64)
    ]
    loose, tight = (float(end[0]) for end in ends)
    assert abs(loose - tight) > 1e-7
    threshold = (loose + tight) / 2
    assert threshold > tight if side == "upper" else threshold < tight

    settings = Settings(eps=(eps,), dtype="float32")
    found = certify(replace(detector("residual"), model=model, threshold=threshold), x, kind=kind, settings=settings)
    assert getattr(found[0].at[0], side) == pytest.approx(tight, abs=1e-9)
    assert found[0].verdict == "certified"


def test_rows_are_in_float32_where_there_are_rows_and_float32_keeps_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert with_fast_rows(Settings(), device).dtype == "float32"
    assert with_fast_rows(Settings(method="interval"), device).dtype == "float64"
    assert with_fast_rows(Settings(method="smoothing", norm=2.0), device).dtype == "float64"
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert with_fast_rows(Settings(), device).dtype == "float64"


def test_unsound_bounds_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With certified radii that are far too large the attack succeeds inside them, and says so."""
    monkeypatch.setattr(
        "certood.analysis.evidence.direct.certified_radii",
        lambda question, images, *rest, **more: torch.ones(len(images)).double(),
    )
    records = certify(detector(), images(4).float(), settings=Settings(eps=(0.01,)))
    assert sum(record.violations for record in records if record.correct) >= 1


def test_records_survive_the_file(tmp_path: Path) -> None:
    eps = (0.02, 0.005)
    records = certify(detector(), images(6).float(), settings=Settings(eps=eps))
    path = tmp_path / "certificates.csv"
    append_certificates(path, records[:4], eps)
    append_certificates(path, records[4:], eps)
    with path.open("a") as file:
        file.write("half a li")
    found, radii = read_certificates(path, eps)
    assert radii == eps
    for one, two in zip(found, records, strict=True):
        assert one.at == two.at
        assert (one.score, one.radius_certified, one.verdict) == (two.score, two.radius_certified, two.verdict)
    with pytest.raises(RunDirectoryError, match="other columns"):
        read_certificates(path, (0.5,))
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace("True", "Treu").replace("False", "Flase")
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunDirectoryError, match=r"line 3 is damaged"):
        read_certificates(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": ()}, "radii 0 < eps"),
        ({"eps": (-0.1,)}, "radii 0 < eps"),
        ({"eps": (1.5,)}, "eps <= 1"),
        ({"norm": 3}, "norm inf, 2 or 1, got 3"),
        ({"method": "beta-crown"}, "unknown method"),
        ({"method": "smoothing"}, "l2 balls only"),
        ({"engine": "x"}, "unknown engine"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(CertoodError, match=message):
        Settings(**change)  # type: ignore[arg-type]


def test_images_that_make_no_sense() -> None:
    x = images(2).float()
    with pytest.raises(CertoodError, match=r"shape \(N, 2, 8, 8\)"):
        certify(detector(), x[:, :1])
    with pytest.raises(CertoodError, match="divide 0–255 images by 255"):
        certify(detector(), x * 255)
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(CertoodError, match="not finite"):
        certify(detector(), x)
    with pytest.raises(CannotCertify, match="no threshold"):
        question_of(detector(threshold=None))


def test_median_smoothing_of_a_linear_score_has_its_closed_form() -> None:
    """S = −w·x: the smoothed score is S, and its decision is kept up to margin / ‖w‖₂; more samples come closer to it."""
    model, weight = linear_detector()
    model = model.float()
    x = images(1)[0].float()
    with torch.no_grad():
        score = float(Energy()(model(x[None])))
    exact = 0.05 / float(weight.norm())
    found = []
    for samples in (200, 5000):
        smoothing = MedianSmoothing(sigma=0.1, samples=samples, confidence=0.999)
        accepted, radius = smoothing.radius(model, Energy(), score + 0.05, x, 0)
        assert accepted
        assert 0 < radius < exact
        found.append(radius)
        ((low, high),) = smoothing.quantile_bounds(model, Energy(), x, [0.02], 0)
        assert low <= score - 0.02 * float(weight.norm())
        assert high >= score + 0.02 * float(weight.norm())
    assert found[1] > found[0]
    for sigma in (math.inf, math.nan, 0.0):
        with pytest.raises(CertoodError, match="finite sigma > 0"):
            MedianSmoothing(sigma)


def test_samples_of_smoothing_do_not_depend_on_the_size_of_a_batch() -> None:
    """With 17 pixels PyTorch's generator gives other numbers for one image than for several."""
    model, image = nn.Sequential(nn.Flatten(), nn.Linear(17, 3)), torch.rand(1, 1, 17)
    found = []
    for size in (1, 7, 60):
        smoothing = MedianSmoothing(0.1, 60, 0.9, batch_size=size)
        accepted, radius = smoothing.radius(model, Energy(), -1.0, image, 3)
        ((low, high),) = smoothing.quantile_bounds(model, Energy(), image, [0.05], 3)
        found.append([accepted, radius, low, high])
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)


def test_smoothing_refuses_a_network_that_mixes_the_images_of_a_batch() -> None:
    class Mixing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - x.mean(0)).flatten(1)

    with pytest.raises(CannotCertify, match="mixes the images of a batch"):
        MedianSmoothing(0.1, 60, 0.9).radius(Mixing(), Energy(), 0.0, torch.rand(1, 2, 2), 0)


def test_bounds_that_differ_in_the_ninth_digit_are_read_exactly() -> None:
    records = certify(detector(), images(2).float(), settings=Settings(eps=(0.001,), attack_steps=1, samples=1))
    known = [record for record in records if 0 < record.radius_attack < math.inf]
    assert known
    for record in known:
        over = {**record.values, "radius_certified": record.radius_attack * (1 + 4e-9)}
        assert unsound([replace(record, values=over)])


def test_smoothing_fills_only_its_own_column() -> None:
    settings = Settings(eps=(0.05,), norm=2, method="smoothing", smoothing=MedianSmoothing(samples=50, confidence=0.95))
    for record in certify(detector(), images(4).float(), settings=settings):
        assert math.isnan(record.radius_certified)
        assert record.radius_smoothing >= 0


def test_smoothed_decisions_that_differ_from_the_networks_are_read_again(tmp_path: Path) -> None:
    settings = Settings(eps=(0.05,), norm=2, method="smoothing", smoothing=MedianSmoothing(0.5, 50, 0.95))
    records = certify(detector(), images(24).float(), settings=settings)
    assert any(record.accepted != (record.score <= record.threshold) for record in records)
    assert unsound(records) == []
    append_certificates(tmp_path / "certificates.csv", records, settings.eps)
    again, _ = read_certificates(tmp_path / "certificates.csv", settings.eps)
    assert unsound(again) == []
    # The network's own decisions are still those of score and threshold.
    plain = certify(detector(), images(2).float(), settings=Settings(eps=(0.001,), attack_steps=1, samples=1))
    assert unsound([replace(plain[0], accepted=not plain[0].accepted)])


def test_smoothed_decisions_are_in_float64_where_scores_crowd_together() -> None:
    class Sure(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b = 10 + x.mean((1, 2, 3))
            return torch.stack([b, -b], 1)

    smoothing, x = MedianSmoothing(sigma=0.1, samples=200, confidence=0.99), 0.5 * torch.ones(1, 4, 4)
    score = float(MSP()(Sure()(x[None]).double())[0])
    # In float32 all these scores are −1, on the accepted side of both.
    assert smoothing.radius(Sure(), MSP(), score + 1e-9, x, 0)[0]
    assert not smoothing.radius(Sure(), MSP(), score - 5e-10, x, 0)[0]


def test_a_margin_below_the_rounding_of_the_score_certifies_no_radius() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        # Terms of 4·10⁶ cancel: the score is known to about 10⁻⁹.
        model[1].weight.copy_(torch.tensor([[4e6, -4e6, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    x = torch.tensor([0.3, 0.3, 0.2, 0.0]).double().view(1, 1, 2, 2)
    graph = capture(model, x)
    score = float(MaxLogit()(model(x).detach())[0])
    for away, certain in ((1e-11, False), (1e-3, True)):
        question = Question(graph, MaxLogit(), score + away, math.inf)
        margin = float(question.certain_margins(question.point_bounds(x), torch.tensor([True]))[0])
        assert 0 <= margin <= away
        assert (margin > 0) == certain
        found = certify(
            Detector(model, MaxLogit(), score + away, "test", (1, 2, 2), ("a", "b"), (0.0,), (1.0,)),
            x,
            settings=Settings(eps=(1e-9,), attack_steps=1, samples=1),
            question=question,
        )[0]
        assert (max(found.radius_global, found.radius_lipschitz, found.radius_step) > 0) == certain


def test_the_margin_of_a_deep_network_is_not_lost_to_the_rounding_of_its_layers() -> None:
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=4, input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,)).double()
    x = torch.rand(3, 1, 8, 8).double()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2)
    model.eval()
    scores = Energy()(model(x)).detach()
    question = Question(capture(model, x), Energy(), float(scores.min()) - 0.5, 2)
    point = question.point_bounds(x)
    assert bool(((point.lower <= scores) & (scores <= point.upper)).all())
    margins = question.certain_margins(point, scores <= question.threshold)
    torch.testing.assert_close(margins, scores - question.threshold, rtol=1e-6, atol=0)


def test_fpr95_is_not_known_where_gamma_accepts_another_share() -> None:
    records = certify(detector(), images(4), kind="id", name="in", settings=Settings(attack_steps=1, samples=1))
    records += certify(detector(), images(4), kind="ood", name="out", settings=Settings(attack_steps=1, samples=1))
    usual, half = (summarise(records, (0.01,), tpr=tpr)["sets"]["out"] for tpr in (0.95, 0.5))
    assert usual["fpr95"] <= usual["gfpr95"][0]
    assert math.isnan(half.pop("fpr95"))
    assert math.isnan(half.pop("afpr95")[0])
    assert math.isnan(half.pop("gfpr95")[0])
    assert half.items() <= usual.items()


@pytest.mark.slow
def test_networks_of_every_kind_can_be_certified() -> None:
    assert set(NETWORKS) >= {"conv", "residual", "gated"}
    for name in ("residual", "gated", "depthwise"):
        records = certify(detector(name), images(4).float(), settings=Settings(eps=(0.01,), attack_steps=8, samples=4))
        assert not sum(record.violations for record in records)


@pytest.mark.parametrize("power", [0.7, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("tolerance", [0.01, 0.001])
def test_the_search_finds_a_radius_in_few_passes(power: float, tolerance: float) -> None:
    """A slack with a known end, from guesses far below it, near it and far above it."""
    exact = torch.tensor([0.003, 0.02, 0.02, 0.3, 2.0]).double()
    start = torch.tensor([1e-3, 0.5, 40.0, 2.0, 1.0]).double()
    guess = exact * torch.tensor([1.0, 0.4, 0.05, 3.0, 1.0]).double()
    passes = torch.zeros(5)

    def slack(chosen: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        passes[chosen] += 1
        value = start[chosen] * (1 - (eps / exact[chosen]) ** power)
        return torch.where(eps > 4 * exact[chosen], -math.inf, value), torch.zeros_like(eps)

    found = _largest(slack, start, guess, 1.0, tolerance, 16)
    assert (found[:4] <= exact[:4]).all()
    assert (found[:4] >= exact[:4] * (1 - tolerance)).all()
    assert found[4] == 1  # the whole range of pixels
    assert passes.mean() <= (7 if power < 8 else 11)


def test_a_decision_that_depends_on_the_precision_is_refused() -> None:
    """Of images so dark that ε of float32 counts, which no image does that the network was compared at."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.last = nn.Linear(192, 10)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return self.last(flat / (flat.norm(dim=1, keepdim=True) + torch.finfo(flat.dtype).eps))

    model, score = Normalised().eval(), MaxLogit()
    dark = torch.rand(1, 3, 8, 8) * 1e-8
    with torch.no_grad():
        own, exact = float(score(model(dark))), float(score(model.double()(dark.double())))
    assert abs(own - exact) > 0.1 * abs(exact)
    detector = Detector(
        model.float(), score, (own + exact) / 2, "mine", (3, 8, 8), tuple("abcdefghij"), (0.0,) * 3, (1.0,) * 3
    )
    with pytest.raises(CannotCertify, match=r"dark, image 7: .* on the other side of γ"):
        certify(detector, dark, name="dark", indices=[7], settings=Settings(attack_steps=2, samples=2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("accepted", [True, False])
def test_a_score_that_is_not_finite_in_the_precision_of_the_network_is_refused(value: float, accepted: bool) -> None:
    """Numbers of float16 that overflow at one image, and not at those at which the network is compared with its copy."""

    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(192, 3)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            large = (flat[:, 0] - flat[:, 1:].mean(1)) * 300
            # Beyond 65504 only where the first pixel is bright and all others are dark.
            added = {math.nan: large.square() - large.square(), math.inf: -large.square(), -math.inf: large.square()}[
                value
            ]
            return self.last(flat) * 0.1 + added[:, None] * (1 if math.isnan(value) else 1e-3)

    torch.manual_seed(0)
    image = torch.zeros(1, 3, 8, 8)
    image[:, 0, 0, 0] = 1
    model = Overflowing().half().eval()
    detector = Detector(
        model, MaxLogit(), 1e6 if accepted else -1e6, "mine", (3, 8, 8), tuple("abc"), (0.0,) * 3, (1.0,) * 3
    )
    assert not detector.scores(image.half()).isfinite().any()
    with pytest.raises(
        CannotCertify, match=r"bright: the score .* not finite in torch.float16, in which the network runs"
    ):
        certify(detector, image, name="bright", settings=Settings(attack_steps=2, samples=2))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_networks_of_every_precision_are_smoothed_in_it_and_in_eval_mode(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    )
    images = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        expected = Energy()(model.eval()(images)).double()
    detector = Detector(model.to(precision).train(), Energy(), -1.0, "mine", (1, 8, 8), tuple("abc"), (0.0,), (1.0,))
    settings = Settings(eps=(0.01,), method="smoothing", norm=2.0, smoothing=MedianSmoothing(0.02, 100))
    found = certify(detector, images, settings=settings)
    close = {torch.float16: 1e-2, torch.bfloat16: 5e-2}.get(precision, 1e-6)
    for one, score in zip(found, expected.tolist(), strict=True):
        assert one.score == pytest.approx(score, abs=close)
        assert one.float32_difference < 1e-12
        assert one.accepted == (score <= -1.0)
        assert one.radius_smoothing > 0.01
