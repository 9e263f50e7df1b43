"""Certified training: terms against formulas, bounds against attacks, the ramp, the alarm, and whole runs."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certood.analysis.bounds import DifferentiableBounds
from certood.data import load_set, to_pixels
from certood.errors import CannotCertify, RecipeError, ScoreCollapsed
from certood.runs import RunDirectory
from certood.scores import Energy
from certood.train.alarm import check_score
from certood.train.batch_statistics import fix_statistics
from certood.train.certified import CERTIFIED_TERMS, CertifiedTerm, ScoreBounds
from certood.train.certified.bounding import CertifiedTraining, attack
from certood.train.certified.mtl_ibp import MtlIbp
from certood.train.certified.oscillation import Oscillation
from certood.train.certified.ramp import Ramp
from certood.train.certified.score import CertifiedScore
from certood.train.initialisation import initialise_for_bounds
from certood.train.loop import fit
from certood.train.objectives.energy import EnergyMargin
from certood.train.objectives.logistic import LogisticEnergy
from certood.train.penalty import GradientPenalty
from certood.train.recipe import Recipe, load_recipe
from certood.train.step import TrainingStep
from tests.quick import first_is_quick
from tests.train.interruption import interrupted_after

EPS = 0.05
SHORT = ["training.epochs=3", "training.steps_per_epoch=2", "run.device=cpu", "model.options.width=4"]
SHORT += ["certified.start=1", "certified.ramp=1", "optimiser.warmup=0", "optimiser.decay_start=0"]


def recipe(name: str = "digits-certified", *settings: str) -> Recipe:
    return load_recipe(name, [*SHORT, *settings])


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    return nn.Sequential(*layers).double()


def batch(inside: int = 4, outside: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.rand(inside + outside, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return made[:inside], torch.arange(inside) % 5, made[inside:]


def scores_of(seed: int = 0) -> tuple[ScoreBounds, ScoreBounds]:
    """Made-up bounds of four ID images and six outliers."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for count in (4, 6):
        clean, below, above = torch.randn(3, count, dtype=torch.float64, generator=generator)
        below, above = below.abs(), above.abs()
        sides.append(ScoreBounds(clean, clean - below, clean + above, clean + 0.5 * above))
    return sides[0], sides[1]


def difference(scores_in: Tensor, scores_out: Tensor) -> Tensor:
    """An outlier term that is linear in both."""
    return scores_in.mean() - 2 * scores_out.mean()


@pytest.mark.parametrize("name", CERTIFIED_TERMS.names())
def test_a_term_of_points_is_the_clean_one(name: str) -> None:
    term = CERTIFIED_TERMS.find(name)()
    inside, outside = (ScoreBounds.of_points(side.clean) for side in scores_of())
    assert term.outlier_term(difference, inside, outside) == pytest.approx(
        difference(inside.clean, outside.clean).item()
    )
    assert term.added_term(inside, outside, EPS) == 0


def test_the_terms_are_their_formulas() -> None:
    inside, outside = scores_of()
    certified = (inside.upper.mean() - 2 * outside.lower.mean()).item()
    attacked = (inside.attacked.mean() - 2 * outside.attacked.mean()).item()
    assert CertifiedScore().outlier_term(difference, inside, outside).item() == pytest.approx(certified)
    combined = MtlIbp(alpha=0.2).outlier_term(difference, inside, outside).item()
    assert combined == pytest.approx(0.8 * attacked + 0.2 * certified)
    slopes = [
        sum(
            math.log1p((high - low) / (2 * EPS))
            for low, high in zip(side.lower.tolist(), side.upper.tolist(), strict=True)
        )
        / len(side.lower)
        for side in (inside, outside)
    ]
    oscillation = Oscillation(weight=0.3)
    assert oscillation.weight == 0.3
    assert oscillation.added_term(inside, outside, EPS).item() == pytest.approx(sum(slopes))
    assert oscillation.outlier_term(difference, inside, outside) == difference(inside.clean, outside.clean)


@pytest.mark.parametrize(("share", "count"), [(1.0, 6), (0.5, 3), (0.01, 1)])
def test_a_share_of_the_outliers_is_that_of_the_largest_lower_bounds(share: float, count: int) -> None:
    _, outside = scores_of()
    found = outside.of_share(share)
    order = sorted(range(6), key=outside.lower.tolist().__getitem__, reverse=True)
    for place in range(6):
        source = outside.lower if place in order[:count] else outside.clean
        assert found.lower[place] == source[place]
        assert (found.upper[place] == outside.upper[place]) == (place in order[:count])
    assert torch.equal(found.clean, outside.clean)


def certified(model: nn.Module, term: CertifiedTerm, **options: Any) -> CertifiedTraining:
    method = options.pop("method", "interval")
    return CertifiedTraining(term, DifferentiableBounds(model, torch.zeros(1, 1, 8, 8), method), **options)


@pytest.mark.parametrize("method", ["interval", "crown-ibp"])
@pytest.mark.parametrize("side", ["outliers", "both"])
def test_bounds_hold_for_what_an_attack_finds(side: Any, method: str) -> None:
    model = network()
    inside, _, outside = batch()
    images, score = torch.cat([inside, outside]), Energy()
    values = score(model(images))
    known = certified(model, MtlIbp(attack_steps=20), side=side, method=method)
    known_in, known_out = known.known(score, images, 4, values[:4], values[4:], EPS)
    assert (known_out.lower <= known_out.attacked).all()
    assert (known_out.attacked < known_out.clean - 1e-3).all(), "outliers are attacked downwards"
    assert (known_out.clean <= known_out.upper).all()
    if side == "outliers":
        assert all(torch.equal(part, values[:4]) for part in vars(known_in).values())
    else:
        assert (known_in.attacked <= known_in.upper).all()
        assert (known_in.attacked > known_in.clean + 1e-3).all(), "ID images are attacked upwards"
        assert (known_in.lower <= known_in.clean).all()


def test_an_attack_stays_in_its_ball_and_finds_the_corner_of_a_linear_score() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double()
    inside, _, outside = batch()
    images = torch.cat([inside, outside])
    signs = torch.tensor([1.0] * 4 + [-1.0] * 6)
    moved = attack(model, Energy(), images, signs, EPS, 20)
    assert (moved - images).abs().max() <= EPS + 1e-12
    assert moved.min() >= 0
    assert moved.max() <= 1
    # The energy of one logit is its negative.
    slope = -model[1].weight.view(8, 8).sign() * signs[:, None, None, None]
    best = torch.where(slope > 0, (images + EPS).clamp_max(1), (images - EPS).clamp_min(0))
    torch.testing.assert_close(moved, best)


@pytest.mark.parametrize(
    "term", [CertifiedScore(), Oscillation(0.3), MtlIbp(0.7)], ids=lambda term: type(term).__name__
)
def test_a_step_reads_bounds_in_place_of_scores(term: CertifiedTerm) -> None:
    model, objective = network(), EnergyMargin(0.2, -5.0, 1.0)
    inside, labels, outside = batch()
    # Without a random start of the attack a step is a function of its images.
    torch.manual_seed(0)
    found = TrainingStep(model, objective, GradientPenalty(), certified(model, term, side="both"))(
        inside, labels, outside, EPS
    )
    torch.manual_seed(0)
    images = torch.cat([inside, outside])
    values = Energy()(model(images))
    known = certified(model, term, side="both").known(Energy(), images, 4, values[:4], values[4:], EPS)

    def hinge(scores_in: Tensor, scores_out: Tensor) -> Tensor:
        return (scores_in + 5).relu().square().mean() + (1 - scores_out).relu().square().mean()

    expected = term.outlier_term(hinge, *known), term.added_term(*known, EPS)
    torch.testing.assert_close((found.outlier, found.certified), expected)
    total = found.cross_entropy + 0.2 * expected[0] + term.weight * expected[1]
    torch.testing.assert_close(found.total, total)
    plain = TrainingStep(model, objective, GradientPenalty())(inside, labels, outside)
    assert (found.total > plain.total + 1e-4).all()


def test_a_quantile_reads_bounds_of_the_largest_and_values_of_the_others() -> None:
    model, objective = network(), LogisticEnergy()
    inside, _, outside = batch()
    whole = certified(model, CertifiedScore())
    scores_in, scores_out = (objective.score(model(images)) for images in (inside, outside))
    images = torch.cat([inside, outside])
    lower = whole.known(objective.score, images, len(inside), scores_in, scores_out, EPS)[1].lower
    share = certified(model, CertifiedScore(), quantile=0.5)
    found = share.known(objective.score, images, len(inside), scores_in, scores_out, EPS)[1]
    bounded = lower >= lower.sort(descending=True).values[2]
    assert bounded.sum() == 3
    torch.testing.assert_close(found.lower, torch.where(bounded, lower, scores_out))
    assert (found.lower >= lower).all()


@pytest.mark.parametrize(
    ("term", "weight", "quantile", "count"),
    [
        (CertifiedScore(), 0.0, 1.0, 4),
        (MtlIbp(attack_steps=1), 0.0, 1.0, 4),
        (CertifiedScore(), 0.0, 0.5, 10),
        (CertifiedScore(), 0.1, 1.0, 10),
        (Oscillation(), 0.0, 1.0, 10),
    ],
)
def test_values_of_outliers_are_computed_where_something_reads_them(
    term: CertifiedTerm, weight: float, quantile: float, count: int
) -> None:
    model = network()
    step = TrainingStep(
        model, LogisticEnergy(), GradientPenalty(weight), certified(model, term, quantile=quantile)
    ).double()
    passed: list[int] = []
    model.register_forward_hook(lambda module, images, logits: passed.append(len(images[0])))
    step(*batch(), EPS)
    assert passed[0] == count
    passed.clear()
    step(*batch(), 0.0)
    assert passed[0] == 10


def test_at_radius_zero_a_step_is_the_plain_one() -> None:
    model = network()
    for term in (CertifiedScore(), Oscillation(), MtlIbp()):
        step = TrainingStep(model, LogisticEnergy(), GradientPenalty(0.1), certified(model, term))
        plain = TrainingStep(model, LogisticEnergy(), GradientPenalty(0.1))
        torch.testing.assert_close(step(*batch(), 0.0), plain(*batch()))


def test_gradients_of_a_step_equal_finite_differences() -> None:
    model = network()
    training = certified(model, CertifiedScore(), side="both")
    step = TrainingStep(model, LogisticEnergy(), GradientPenalty(0.1), training).double()
    step(*batch(), EPS).total.backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in step.parameters():
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * direction)
            values.append(step(*batch(), EPS).total.item())
            with torch.no_grad():
                parameter.sub_(sign * 1e-6 * direction)
        assert parameter.grad is not None
        slope = (parameter.grad * direction).sum().item()
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_the_ramp_in_steps() -> None:
    ramp = Ramp(0.3, start=1, length=2, steps=5)
    assert [ramp(step) for step in range(5)] == [0.0] * 5
    assert [ramp(step) for step in range(5, 15)] == pytest.approx([0.03 * step for step in range(1, 11)])
    assert ramp(15) == ramp(1000) == 0.3
    assert Ramp(0.3, 0, 0, 5)(0) == 0.3


def test_the_ramp_of_a_recipe_has_stated_defaults() -> None:
    settings = ["training.epochs=40", "certified.eps=0.2"]
    made = load_recipe("digits-energy", settings)
    assert made.certified is not None
    assert made.certified.schedule(40, 7) == Ramp(0.2, 2.0, 20.0, 7)
    assert made.certified.certified_term == CertifiedScore()
    assert made.validation_auxiliary == 0.05
    assert load_recipe("digits-energy").validation_auxiliary == 0


def test_weights_for_bounds_have_their_deviation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 500, 3), nn.Linear(300, 400))
    initialise_for_bounds(model)
    for part in model:
        expected = math.sqrt(2 * math.pi) / part.weight[0].numel()  # type: ignore[union-attr]
        assert part.weight.std().item() == pytest.approx(expected, rel=0.02)  # type: ignore[union-attr]
        assert (part.bias == 0).all()  # type: ignore[union-attr]


def test_fixed_statistics_stay_in_train_mode() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    fix_statistics(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    model.train()
    model(torch.rand(5, 1, 8, 8))
    assert model[2].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["certified.eps=1.5"], "eps is in pixels of .*expected at most 1, got 1.5; 8-bit radii are divided by 255"),
        (["certified.eps=0"], "'certified.eps': Input should be greater than 0"),
        (["certified.ramp=40", "certified.start=10"], "10 . 40 epochs, but training.epochs is 40: shorten the ramp"),
        (["data.auxiliary=", "objective.name=cross-entropy"], r"table \[certified\] needs data.auxiliary"),
        (
            ["objective.name=cross-entropy"],
            "'score' acts through the objective's outlier term, and 'cross-entropy' has none",
        ),
        (["certified.norm=2"], "norm 2 needs method = 'crown-ibp'"),
        (["certified.norm=2", "certified.method=crown-ibp", "certified.term=mtl-ibp"], "takes norm inf, got 2"),
        (["certified.term=scores"], "unknown certified term 'scores'; did you mean 'score'"),
        (["certified.alpha=0.2"], "parameter of the certified term 'mtl-ibp', but certified.term is 'score'"),
        (["certified.quantile=0"], "greater than 0"),
        (["certified.esp=0.1"], "unknown recipe key 'certified.esp'; did you mean 'certified.eps'"),
        (["model.initialisation=certified", "training.init=runs/x"], "overwritten by the weights of training.init"),
    ],
)
def test_mistakes_in_a_recipe_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits-energy", ["certified.eps=0.1", *settings])


def test_the_radius_is_required() -> None:
    with pytest.raises(RecipeError, match=r"recipe key 'certified.eps' is missing"):
        load_recipe("digits-energy", ["certified.term=score"])


def test_batch_normalisation_is_refused_before_training_starts(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8).permute(0, 2, 3, 1).numpy()
    for name in ("id", "out"):
        np.savez(tmp_path / f"{name}.npz", images=images if name == "id" else 255 - images, labels=np.arange(40) % 4)
    settings = ["data.id=npz:id.npz", "data.auxiliary=npz:out.npz", "data.ood=[]", f"data.root={tmp_path}"]
    settings += ["model.architecture=wrn-40-2", "model.options.depth=10", "training.batch_size=4", "data.size=32"]
    made = recipe("digits-certified", *settings)
    made = made.model_copy(update={"model": made.model.model_copy(update={"options": {"depth": 10}})})
    with pytest.raises(CannotCertify, match=r"batch normalisation in train mode.*model.fixed_statistics = true"):
        fit(made, tmp_path / "run", progress=False)
    assert not RunDirectory(tmp_path / "run").training.exists()


def rows(*values: tuple[float, float, float]) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, "eps": eps, "auroc_auxiliary": auroc, "score_deviation": deviation}
        for epoch, (eps, auroc, deviation) in enumerate(values, 1)
    ]


def test_the_alarm_rings_only_where_the_score_tells_nothing_and_is_nearly_constant() -> None:
    check_score([])
    check_score(rows((0.0, 0.9, 5.0), (0.1, 0.9, 0.01)))
    check_score(rows((0.0, 0.9, 5.0), (0.1, 0.5, 0.06)))
    check_score(rows((0.0, 0.5, 5.0), (0.0, 0.5, 0.01)))
    check_score(rows((0.0, 0.9, 5.0), (0.1, math.nan, math.nan)))
    with pytest.raises(
        ScoreCollapsed, match=r"epoch 2, at eps = 0.1: AUROC .* 50.4 %, standard deviation 0.04 after 5.*Try"
    ):
        check_score(rows((0.0, 0.9, 5.0), (0.1, 0.504, 0.04)))


@pytest.mark.slow
def test_a_run_whose_score_collapses_stops_and_leaves_no_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certood.train import epoch

    monkeypatch.setattr(epoch, "watched_scores", lambda training: (0.5, 5.0 if training.epochs_done == 0 else 0.01))
    for resume in (False, True):
        with pytest.raises(ScoreCollapsed, match="in epoch 2"):
            fit(recipe(), tmp_path / "run", resume=resume, progress=False)
        assert not RunDirectory(tmp_path / "run").checkpoint.exists()


@pytest.mark.usefixtures("short_products")
@pytest.mark.parametrize(
    "settings",
    first_is_quick(
        [
            [],
            [
                "certified.term=mtl-ibp",
                "certified.method=crown-ibp",
                "certified.quantile=0.5",
                "certified.side=both",
                "objective.name=energy",
                "sampler.name=cluster",
            ],
            [
                "certified.norm=2",
                "certified.method=crown-ibp",
                "objective.name=outlier-exposure",
                "gradient.weight=0.1",
            ],
            ["objective.name=absent-class", "run.precision=bf16-mixed"],
        ]
    ),
    ids=lambda settings: "-".join(part.split("=")[1] for part in settings) or "default",
)
def test_a_certified_run_resumes_with_the_same_weights(tmp_path: Path, settings: list[str]) -> None:
    whole = fit(recipe("digits-certified", *settings), tmp_path / "whole", progress=False)
    with interrupted_after(2):
        fit(recipe("digits-certified", *settings), tmp_path / "cut", progress=False)
    cut = fit(recipe("digits-certified", *settings), tmp_path / "cut", resume=True, progress=False)
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with RunDirectory(tmp_path / "cut").training.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [float(row["eps"]) for row in found] == pytest.approx([0.0, 0.1, 0.1])
    assert all(0 <= float(row["auroc_auxiliary"]) <= 1 and float(row["score_deviation"]) > 0 for row in found)
    assert (float(found[-1]["certified"]) > 0) == ("certified.term=oscillation" in settings)


def test_held_out_auxiliary_outliers_are_not_trained_on() -> None:
    from certood.train.setup import load_training_data

    data = load_training_data(recipe())
    assert data.auxiliary is not None
    assert data.auxiliary_validation is not None
    whole = load_set("digits-auxiliary", root=Path())
    assert len(data.auxiliary_validation) == pytest.approx(0.05 * len(whole), abs=1)
    kept, held = (
        {source.batch(torch.tensor([index])).numpy().tobytes() for index in range(len(source))}
        for source in (data.auxiliary, data.auxiliary_validation)
    )
    both = {whole.batch(torch.tensor([index])).numpy().tobytes() for index in range(len(whole))}
    assert kept | held == both
    assert len(data.auxiliary) + len(data.auxiliary_validation) == len(whole)
    assert "auxiliary-validation/digits-auxiliary" in data.fingerprints
    # Which they are is part of the split: it follows its seed, and not that of the run.
    others = [load_training_data(recipe("digits-certified", other)) for other in ("run.seed=1", "data.split_seed=1")]
    found = [other.auxiliary_validation.fingerprint for other in others if other.auxiliary_validation is not None]
    assert [one == data.auxiliary_validation.fingerprint for one in found] == [True, False]


@pytest.mark.slow
def test_training_by_the_recipe_gives_certificates_that_plain_training_does_not(tmp_path: Path) -> None:
    from certood.analysis.bounds import LpBall, bound, capture
    from certood.metrics import auroc

    guaranteed = {}
    # Half of the recipe's epochs, of the ramp as well, and a few of plain training.
    half = ["training.epochs=50", "certified.start=3", "certified.ramp=25", "optimiser.decay_start=28"]
    for name, settings in (("digits-certified", half), ("digits-energy", ["training.epochs=15"])):
        detector = fit(load_recipe(name, ["run.device=cpu", *settings]), tmp_path / name, progress=False)
        photo, near = (
            to_pixels(load_set(f"digits-{part}", root=Path()).batch(torch.arange(150))) for part in ("photo", "near")
        )
        inside = to_pixels(load_set("digits", root=Path()).batch(torch.arange(150)))
        bounds = bound(capture(detector.model, photo[:1]), LpBall(photo, 0.1), "interval", score=Energy())
        guaranteed[name] = auroc(detector.scores(inside).detach().numpy(), bounds.lower.numpy())
        assert auroc(detector.scores(inside).detach().numpy(), detector.scores(near).detach().numpy()) > 0.9
    assert guaranteed["digits-certified"] > 0.97
    assert guaranteed["digits-energy"] < 0.9
