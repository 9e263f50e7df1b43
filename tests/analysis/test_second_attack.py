"""A second attack: each point counts by what the network says of it, no image depends on its batch, the nearer attack counts."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from certood.analysis.bounds import capture
from certood.analysis.certification import certify
from certood.analysis.certify_run import certify_sets
from certood.analysis.evidence import foolbox_attacks
from certood.analysis.evidence.attack_libraries import LIBRARIES
from certood.analysis.evidence.attack_library import AttackLibrary
from certood.analysis.evidence.attacks import distances
from certood.analysis.evidence.base import Known
from certood.analysis.evidence.second_attack import POINTS, SecondAttack, nearest_attacks
from certood.analysis.question import Question
from certood.analysis.settings import Settings
from certood.cli import main
from certood.data import ImageSet
from certood.detector import Detector
from certood.errors import CertoodError
from certood.models.classifier import Normalise
from certood.scores import Energy
from tests.analysis.networks import NORMS, captured, images
from tests.quick import first_is_quick

foolbox = pytest.importorskip("foolbox", reason="the extra attacks is not installed")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foolbox_attacks, "STEPS", 25)


def question_of_captured(norm: float) -> tuple[Question, Tensor]:
    graph, x = captured("conv", trained=True), images(6)
    return Question(graph, Energy(), float(Energy()(graph(x)).median()) + 1e-6, norm), x


def known_of(question: Question, x: Tensor, kind: str = "id", indices: Sequence[int] | None = None) -> Known:
    with torch.no_grad():
        scores = question.scores(x)
    accepted = scores <= question.threshold
    return Known(kind, indices or range(len(x)), scores, (question.threshold - scores).abs(), accepted)


@pytest.mark.parametrize("norm", first_is_quick(NORMS))
def test_points_lie_where_they_are_said_to_and_depend_on_no_other_image(norm: float) -> None:
    question, x = question_of_captured(norm)
    evidence = SecondAttack(Settings(norm=norm, second_attack="foolbox"))
    for kind in ("id", "ood"):
        known = known_of(question, x, kind)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            found = evidence(question, x, known)
            state = torch.random.get_rng_state()
            torch.manual_seed(3)
            assert torch.equal(state, torch.random.get_rng_state()), "the user's own random numbers stay as they are"
        radii, points = found["radius_second_attack"], found[POINTS]
        right = known.right
        assert len(right) > 1
        assert (radii[right] > 0).all()
        hit = right[radii[right].isfinite()]
        assert len(hit)
        assert torch.allclose(radii[hit], distances(points[hit], x[hit], norm), rtol=1e-12)
        assert ((points >= 0) & (points <= 1)).all()
        with torch.no_grad():
            assert ((question.scores(points[hit]) <= question.threshold) != known.accepted[hit]).all()
        part = right[-1:]
        alone = evidence(question, x[part], known_of(question, x[part], kind, part.tolist()))
        assert float(alone["radius_second_attack"]) == pytest.approx(float(radii[part]), rel=1e-9)


class Cliff(nn.Module):
    """Logits (N, 1) without slope at most images: a ramp between two plateaus of the mean pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return -(4 * x.mean((1, 2, 3)) - 2).clamp(-0.5, 0.5)[:, None]


@pytest.mark.parametrize("norm", first_is_quick([2.0, math.inf]))
def test_chance_where_gradients_vanish_belongs_to_the_image(norm: float) -> None:
    x = torch.stack([torch.full((1, 2, 2), shade) for shade in (0.05, 0.1, 0.2)]).double()
    question = Question(capture(Cliff(), x), Energy(), 0.0, norm)
    evidence = SecondAttack(Settings(norm=norm, second_attack="foolbox"))
    together = evidence(question, x, known_of(question, x))["radius_second_attack"]
    assert together.isfinite().any(), "noise leads off the plateau"
    alone = [
        float(evidence(question, x[row, None], known_of(question, x[row, None], indices=[row]))["radius_second_attack"])
        for row in range(3)
    ]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_attacks_of_a_linear_score_come_near_the_distance_of_its_plane() -> None:
    """S = −w·x: the distance to the boundary is m/‖w‖_q."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))
    model[1].weight.data, model[1].bias.data = torch.tensor([[3.0, -4.0]]), torch.tensor([0.5])
    x = torch.full((1, 1, 1, 2), 0.5).double()
    graph = capture(model, x)
    for norm, size in ((math.inf, 7.0), (2, 5.0), (1, 4.0)):
        question = Question(graph, Energy(), 0.2, norm)
        found = SecondAttack(Settings(norm=norm, second_attack="foolbox"))(question, x, known_of(question, x))
        assert float(found["radius_second_attack"]) == pytest.approx(0.2 / size, rel=0.02)
        assert float(found["radius_second_attack"]) >= 0.2 / size * (1 - 1e-9)


class Planted(AttackLibrary):
    """Claims points: some that change nothing, some outside of the pixel range or no numbers, one that is right."""

    name = "planted"
    right: float = 0.6
    wide: float = 9.0

    def require(self) -> None:
        """Nothing to install."""

    def points(
        self, margins: Callable[[Tensor], Tensor], images: Tensor, norm: float, random: Sequence[torch.Generator]
    ) -> Iterator[Tensor]:
        """In turn."""
        yield images + 0.001
        yield torch.full_like(images, math.nan)
        yield from (torch.full_like(images, shade) for shade in (self.wide, self.right) if shade)


def test_a_point_counts_only_if_the_network_changes_its_decision_inside_the_pixel_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = Planted()
    monkeypatch.setitem(LIBRARIES, "planted", library)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    nn.init.constant_(model[1].weight, -0.25)
    nn.init.zeros_(model[1].bias)
    x = torch.full((1, 1, 2, 2), 0.4).double()
    graph, evidence = capture(model, x), SecondAttack(Settings(second_attack="planted"))
    # S is the mean pixel: a threshold of 0.5 is 0.1 away, one of 1.2 lies outside of the pixel range.
    near, far = Question(graph, Energy(), 0.5), Question(graph, Energy(), 1.2)
    assert float(evidence(near, x, known_of(near, x))["radius_second_attack"]) == pytest.approx(0.1, rel=1e-3)
    found = evidence(far, x, known_of(far, x))
    assert float(found["radius_second_attack"]) == math.inf
    assert torch.equal(found[POINTS], x)
    library.right = library.wide = 0.0
    assert float(evidence(near, x, known_of(near, x))["radius_second_attack"]) == math.inf


def detector_of_pixels() -> tuple[Detector, Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(Normalise([0.5], [0.3]), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(8, 1, 4, 4)
    with torch.no_grad():
        threshold = float(Energy()(model(x)).median()) + 1e-4
    return Detector(model, Energy(), threshold, "test", (1, 4, 4), ("a", "b", "c"), (0.0,), (1.0,)), x


@pytest.mark.slow
def test_the_nearer_attack_is_the_attack_radius() -> None:
    detector, x = detector_of_pixels()
    plain = certify(detector, x, settings=Settings(eps=(0.001,)))
    settings = Settings(eps=(0.001,), second_attack="foolbox")
    records = certify(detector, x, settings=settings)
    for before, record in zip(plain, records, strict=True):
        assert math.isnan(before.radius_second_attack)
        assert record.violations == 0
        assert record.radius_certified == before.radius_certified
        assert record.radius_attack <= min(before.radius_attack, record.radius_second_attack)
    radii = [(one.radius_attack, one.radius_second_attack) for one in records]
    assert any(one.radius_attack < before.radius_attack for before, one in zip(plain, records, strict=True))
    counts = nearest_attacks(radii, "foolbox")
    assert counts == {
        "certood": sum(0 < one.radius_attack < one.radius_second_attack for one in records),
        "foolbox": sum(0 < one.radius_attack == one.radius_second_attack < math.inf for one in records),
    }
    again = certify(detector, x, settings=settings, batch_size=3)
    for one, other in zip(records, again, strict=True):
        assert other.radius_second_attack == pytest.approx(one.radius_second_attack, rel=1e-9)


def test_a_tie_counts_for_the_second_attack_and_no_attack_for_none() -> None:
    radii = [(0.1, 0.1), (0.1, 0.2), (0.1, math.inf), (math.inf, math.inf), (0.0, 0.0)]
    assert nearest_attacks(radii, "foolbox") == {"certood": 2, "foolbox": 1}


def test_the_certification_says_whose_attack_was_the_nearer(tmp_path: Path) -> None:
    detector, x = detector_of_pixels()
    inside, outside = (
        ImageSet(name, (255 * part).round().to(torch.uint8)) for name, part in (("in", x[:4]), ("out", x[4:]))
    )
    settings = Settings(eps=(0.01,), second_attack="foolbox")
    result = certify_sets(detector, inside, {"out": outside}, tmp_path / "c", settings, progress=False, figures=False)
    written = json.loads((tmp_path / "c" / "certification.json").read_text())
    assert written["nearest_attack"] == result["nearest_attack"]
    assert set(written["nearest_attack"]) == {"certood", "foolbox"}
    assert written["settings"]["second_attack"] == "foolbox"
    assert "median_radius_second_attack" in written["sets"]["in"]


def test_a_missing_library_is_one_error_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    result = CliRunner().invoke(main, ["certify", str(tmp_path / "no-run"), "--second-attack", "foolbox"])
    assert result.exit_code == 2
    assert result.stderr.strip().endswith("the second attack foolbox needs foolbox: pip install 'certood[attacks]'")


def test_an_unknown_library_and_smoothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CertoodError, match="unknown second attack 'fool'; expected foolbox"):
        Settings(second_attack="fool")
    result = CliRunner().invoke(main, ["certify", str(tmp_path), "--second-attack", "fool"])
    assert result.exit_code == 2
    assert "unknown second attack 'fool'; expected foolbox" in result.stderr
    smoothing = ["--method", "smoothing", "--norm", "2", "--second-attack", "foolbox"]
    result = CliRunner().invoke(main, ["certify", str(tmp_path), *smoothing])
    assert result.exit_code == 2
    assert "second-attack says nothing of smoothing" in result.stderr
