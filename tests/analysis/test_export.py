"""`certood export` on a small certified run: files, boxes, properties against the network, and what it refuses."""

import csv
import hashlib
import json
import math
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from certood.analysis import certify_run
from certood.analysis.bounds import capture
from certood.analysis.claims.certificates import CrownBounds, _adjustable, certificates
from certood.analysis.claims.certified_run import CertifiedRun, Claim, _short, certified_run
from certood.analysis.claims.conditions import Conditioned, conditioned
from certood.analysis.claims.networks import EXACT_TOLERANCE, compared, write_onnx
from certood.analysis.settings import Settings
from certood.checking.folder import check_folder
from certood.checking.linear_bounds import Ball
from certood.checking.network_file import read_network
from certood.checkpoints import load_checkpoint, save_checkpoint
from certood.claims.vnnlib_reading import read_vnnlib
from certood.cli import main
from certood.data import to_pixels
from certood.detector import Detector
from certood.runs import load_run_data
from certood.scores import Energy, MaxLogit
from certood.scores.base import Score
from certood.train.loop import fit
from certood.train.recipe import load_recipe

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow
SETS = ("--ood", "digits-near", "--ood", "digits-uniform")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> str:
    found = run(*arguments)
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "run"
    fit(load_recipe("digits-greg", ["training.epochs=12", "run.device=cpu"]), out, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify_run, "draw_figures", lambda *_: [])
        done("certify", out, "--limit", "5", "--eps", "0.004,0.02", *SETS)
    return out


@pytest.fixture(scope="module")
def exported(certified: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("claims") / "claims"
    return out, done("export", certified, "--limit", "3", "--out", out, *SETS)


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "claims.json").read_text())
    return content


def pixels(certified: Path) -> tuple[Detector, dict[str, NDArray[np.float32]]]:
    detector = load_checkpoint(certified)
    splits, sets = load_run_data(certified, recorded=detector.split)
    sources = {splits.test.name: splits.test, **sets}
    return detector, {name: to_pixels(part.batch(torch.arange(len(part)))).numpy() for name, part in sources.items()}


def session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_every_certified_decision_is_exported(certified: Path, exported: tuple[Path, str]) -> None:
    folder, output = exported
    content = manifest(folder)
    with (certified / "certificates.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected, seen = set(), {}
    for row in rows:
        radii = [eps for eps in ("0.004", "0.02") if row[f"verdict@{eps}"] == "certified"]
        kept = seen.setdefault(row["set"], set())
        if radii and len(kept) < 3:
            kept.add(row["index"])
            expected |= {(row["set"], int(row["index"]), float(eps)) for eps in radii}
    assert {(claim["set"], claim["index"], claim["eps"]) for claim in content["claims"]} == expected
    assert {claim["accepted"] for claim in content["claims"]} == {True, False}
    assert f"{len(expected)} claims about {sum(map(len, seen.values()))} images" in output
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"claims.json"}
    assert set(content["files"]) == files
    for name, digest in content["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert all(len(line) <= 80 for line in output.splitlines() if not line.startswith("Written"))


def test_boxes_lie_within_the_certified_balls(certified: Path, exported: tuple[Path, str]) -> None:
    folder, _ = exported
    _, images = pixels(certified)
    for claim in manifest(folder)["claims"]:
        image = images[claim["set"]][claim["index"]].ravel()
        for kind in ("scores", "conditions"):
            found = read_vnnlib((folder / kind / "vnnlib-1.0" / f"{claim['name']}.vnnlib").read_text("ascii"))
            for case in found.cases:
                for low, middle, high in zip(case.lower, image, case.upper, strict=True):
                    radius = Fraction(claim["eps"])
                    assert max(Fraction(float(middle)) - radius, 0) <= Fraction(low) <= Fraction(float(middle))
                    assert Fraction(float(middle)) <= Fraction(high) <= min(Fraction(float(middle)) + radius, 1)
                    # Pixels at 0 or 1 move to one side only.
                    assert high - low > 0.999 * claim["eps"]


def test_the_files_compute_what_the_detector_does(certified: Path, exported: tuple[Path, str]) -> None:
    folder, output = exported
    detector, images = pixels(certified)
    chosen = np.concatenate([part[:3] for part in images.values()])
    with torch.no_grad():
        logits = detector.model(torch.from_numpy(chosen)).numpy()
    for kind, expected in (("conditions", logits), ("scores", detector.scores(chosen).detach().numpy()[:, None])):
        network = session(folder / kind / "network.onnx")
        found = np.concatenate([network.run(None, {"X": image[None]})[0] for image in chosen])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert manifest(folder)["networks"][f"{kind}/network.onnx"]["onnxruntime_float32"] < 1e-5
        assert f"{kind}/network.onnx: compared with the module" in output


def test_no_point_of_a_box_is_a_counterexample(certified: Path, exported: tuple[Path, str]) -> None:
    """Of scores none ever, of conditions none where they are said to be proved; at another γ there would be one."""
    folder, _ = exported
    threshold = load_checkpoint(certified).threshold
    assert threshold is not None
    random = np.random.default_rng(0)
    networks = {kind: session(folder / kind / "network.onnx") for kind in ("scores", "conditions")}
    for claim in manifest(folder)["claims"]:
        assert claim["condition"]
        for kind, network in networks.items():
            property_ = read_vnnlib((folder / kind / "vnnlib-1.0" / f"{claim['name']}.vnnlib").read_text("ascii"))
            for case in property_.cases:
                if kind == "scores":
                    # Just beyond γ, by less than two numbers of float32.
                    (bound,) = abs(case.bounds)
                    assert 0 <= (abs(threshold) - bound) * (1 if claim["accepted"] else -1) <= 2e-7 * bound
                for _ in range(3):
                    x = np.where(random.random(len(case.lower)) < 0.5, case.lower, case.upper)
                    y = network.run(None, {"X": x.astype(np.float32).reshape(1, 1, 8, 8)})[0].ravel().astype(float)
                    if kind == "scores" or claim["condition_proved"]:
                        assert not case.contains(x, y)
                    assert case.contains(x, y) == bool((case.rows @ y <= case.bounds).all())


def test_certificates_are_checked_and_few_claims_have_none(exported: tuple[Path, str]) -> None:
    folder, output = exported
    claims = manifest(folder)["claims"]
    written = [claim for claim in claims if claim["certificate"]]
    assert len(written) >= 0.8 * len(claims)
    assert f"certificates: {len(written)} of {len(claims)} claims have one" in output
    assert all(claim["no_certificate"] for claim in claims if not claim["certificate"])
    checked = done("check", folder)
    assert f"certificates: {len(written)} of {len(written)} hold" in checked
    assert f"sampled: {8 * len(written)} images" in checked


def test_instances_are_those_of_the_competition(exported: tuple[Path, str]) -> None:
    folder, _ = exported
    names = {claim["name"] for claim in manifest(folder)["claims"]}
    for kind in ("scores", "conditions"):
        for file in ("instances.csv", "instances-2.0.csv"):
            with (folder / kind / file).open() as lines:
                rows = list(csv.reader(lines))
            assert {Path(row[1]).stem for row in rows} == names
            for network, described, seconds in rows:
                assert (folder / kind / network).is_file()
                assert (folder / kind / described).is_file()
                assert float(seconds) > 0


def test_the_share_of_conditions_is_what_bounds_prove(certified: Path, exported: tuple[Path, str]) -> None:
    """By bounds of each condition's rows over the exported box itself, image by image."""
    from certood.analysis.bounds import LpBall, bound, capture

    folder, output = exported
    detector, images = pixels(certified)
    graph = capture(detector.model, torch.zeros(1, 1, 8, 8))
    counts = {True: [0, 0], False: [0, 0]}
    for claim in manifest(folder)["claims"]:
        text = (folder / "conditions" / "vnnlib-1.0" / f"{claim['name']}.vnnlib").read_text("ascii")
        cases = read_vnnlib(text).cases
        rows = torch.from_numpy(np.concatenate([case.rows for case in cases]))
        bounds = torch.from_numpy(np.concatenate([case.bounds for case in cases]))
        image = torch.from_numpy(images[claim["set"]][claim["index"]])[None]
        lower = bound(graph, LpBall(image, claim["eps"]), specification=(rows, -bounds)).lower
        proved = bool((lower > 0).all())
        assert claim["condition_proved"] == proved
        counts[claim["accepted"]][0] += proved
        counts[claim["accepted"]][1] += 1
    assert f"accepted: own bounds prove the sufficient condition of {counts[True][0]} of {counts[True][1]}" in output
    assert f"rejected: own bounds prove the sufficient condition of {counts[False][0]} of {counts[False][1]}" in output
    assert counts[True][0]


@pytest.mark.parametrize(("norm", "share"), [(2.0, 8.0), (1.0, 64.0)])
def test_of_other_balls_the_box_inside_is_exported(certified: Path, norm: float, share: float) -> None:
    detector = load_checkpoint(certified)
    splits, sets = load_run_data(certified, recorded=detector.split)
    run_ = certified_run(detector, {splits.test.name: splits.test, **sets}, certified)
    found = list(replace(run_, settings=replace(run_.settings, norm=norm)).claims(2))
    assert found
    for claim in found:
        assert f"box inside the l{norm:g} ball" in claim.weaker
        corner = [
            max(Fraction(float(high)) - Fraction(float(middle)), Fraction(float(middle)) - Fraction(float(low)))
            for low, middle, high in zip(claim.lower.flat, claim.image.flat, claim.upper.flat, strict=True)
        ]
        # Its farthest corner is within the ball, and its sides are no shorter than need be.
        assert sum(part ** int(norm) for part in corner) <= Fraction(claim.eps) ** int(norm)
        assert float(max(corner)) == pytest.approx(claim.eps / share, rel=1e-3)


def test_what_is_refused(certified: Path, exported: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = exported

    def error(*arguments: str | Path) -> str:
        found = run("export", *arguments)
        assert found.exit_code == 2
        assert len(found.output.splitlines()) <= 2
        return found.output

    assert "--overwrite" in error(certified, "--out", folder, *SETS)
    changed = tmp_path / "changed"
    shutil.copytree(certified, changed)
    text = (changed / "certificates.csv").read_text()
    (changed / "certificates.csv").write_text(text.replace(",unknown,", ",certified,", 1) + "\n")
    assert "has changed since" in error(changed, "--out", tmp_path / "a", *SETS)
    shutil.copy(certified / "certificates.csv", changed)
    detector = load_checkpoint(changed)
    with torch.no_grad():
        next(iter(detector.model.parameters())).add_(0.01)
    save_checkpoint(detector, changed / "checkpoint.safetensors")
    assert "another detector (weights differ)" in error(changed, "--out", tmp_path / "a", *SETS)
    (changed / "certification.json").unlink()
    assert "no finished certification" in error(changed, "--out", tmp_path / "a", *SETS)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("mine")
    assert "thesis.tex, which no export wrote" in error(certified, "--out", stranger, "--overwrite", *SETS)
    assert (stranger / "thesis.tex").read_text() == "mine"
    assert not (tmp_path / "a").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_export_is_replaced_whole(certified: Path, exported: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    shutil.copytree(exported[0], folder)
    done("export", certified, "--limit", "1", "--out", folder, "--overwrite", *SETS)
    content = manifest(folder)
    assert len({(claim["set"], claim["index"]) for claim in content["claims"]}) == 3
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "claims.json",
        *content["files"],
    }


def test_a_score_is_exported_without_values_of_one_number_an_image_where_it_can_be() -> None:
    from dataclasses import dataclass

    from certood.analysis.claims.networks import Scored, ScoredAsRows, scored
    from certood.scores import Energy, Score

    @dataclass(frozen=True)
    class OfRows(Score):
        name = "of-rows"

        def __call__(self, logits: torch.Tensor) -> torch.Tensor:
            return logits.sum(1)

    network, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), torch.rand(2, 1, 2, 2)
    for score, kind in ((Energy(), ScoredAsRows), (OfRows(), Scored)):
        found = scored(network, score, images)
        assert type(found) is kind
        torch.testing.assert_close(found(images), score(network(images))[:, None])


def test_a_claim_near_its_limit_needs_optimised_slopes(exported: tuple[Path, str], certified: Path) -> None:
    """Between what CROWN's slopes prove and the largest radius: some certificate has better slopes for the last bound."""
    detector = load_checkpoint(certified)
    splits, sets = load_run_data(certified, recorded=detector.split)
    run_ = certified_run(detector, {splits.test.name: splits.test, **sets}, certified)
    graph = capture(detector.model, torch.zeros(1, 1, 8, 8))
    claims = [
        replace(claim, name=f"{claim.name}-{factor}", eps=claim.record.radius_certified * factor)
        for claim in run_.claims(1)
        if claim.eps == 0.004
        for factor in (0.9, 1.0, 1.02, 1.04)
    ]
    path = exported[0] / "conditions" / "network.onnx"
    found = [one.certificate for one in certificates(run_, graph, conditioned(run_, graph, claims), path)]
    written = [one for one in found if one is not None]
    assert any(not one.last_slopes for one in written)
    assert any(one.last_slopes for one in written)


def test_a_norm_without_eps_is_exported_with_that_of_the_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.RMSNorm(64), nn.Linear(64, 3))
    write_onnx(network, (1, 8, 8), tmp_path / "network.onnx")
    assert compared(network, torch.rand(4, 1, 8, 8) * 1e-3, tmp_path / "network.onnx").float64 <= EXACT_TOLERANCE


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU6(), nn.Hardtanh(0.1, 0.7), nn.ELU(), nn.Softplus(), nn.GroupNorm(1, 1), nn.LeakyReLU(0.3), nn.SELU()],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_with_constants_are_exported(layer: nn.Module, tmp_path: Path) -> None:
    """Constants take the type of an activation, which CastLike says, and are rounded to float32 in the file."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 1, 3), layer, nn.Flatten(), nn.Linear(36, 3))
    write_onnx(network, (1, 8, 8), tmp_path / "network.onnx")
    assert compared(network, torch.rand(4, 1, 8, 8), tmp_path / "network.onnx").float64 <= EXACT_TOLERANCE


def test_claims_of_nearly_equal_radii_have_names_of_their_own() -> None:
    assert _short([0.01, 0.01000001, 2 / 255]) == {
        0.01: "0.01",
        0.01000001: "0.01000001",
        2 / 255: "0.00784314",
    }


def test_slopes_are_those_of_crown_and_improved_where_activations_correspond(tmp_path: Path) -> None:
    torch.manual_seed(0)
    middle = nn.Linear(64, 6)
    layers = nn.Sequential(nn.Flatten(), Magnitude(), nn.Hardtanh(0.1, 0.7), middle, nn.LeakyReLU(0.1), nn.Linear(6, 3))
    write_onnx(layers, (1, 8, 8), tmp_path / "network.onnx")
    network = read_network(tmp_path / "network.onnx")
    names = [placed.name for placed in network.steps if placed.step.bends]
    assert [name.rpartition("/")[2] for name in names[:4]] == ["positive", "negative", "least", "most"]
    graph = capture(layers, torch.zeros(1, 1, 8, 8))
    (node,) = _adjustable(network, graph)
    assert graph.nodes[node].operation.name == "leaky_relu"  # type: ignore[attr-defined]
    assert _adjustable(network, graph) == {node: names[4]}
    # Of other activations in between nothing is said.
    other = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Hardtanh(0.1, 0.7), middle, nn.LeakyReLU(0.1), nn.Linear(6, 3))
    assert _adjustable(network, capture(other, torch.zeros(1, 1, 8, 8))) == {}
    ball = Ball(torch.rand(64, dtype=torch.float64).numpy(), 0.2, math.inf)
    slopes = CrownBounds(network, ball).slopes
    with torch.no_grad():
        lower, upper = (torch.from_numpy(end).float().clamp(0.1, 0.7) for end in ball.box)
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        reach = radius @ middle.weight.abs().T
        before = middle(centre)
    expected = before + reach > -(before - reach)
    assert slopes[names[4]].tolist() == expected.double().tolist()
    assert 0 < slopes[names[4]].sum() < 6


class Joined(nn.Module):
    """Features beside their ReLU, a strided part of them with zeros around it, and their largest and mean values."""

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, F.relu(x)], dim=1)
        part = F.pad(both[:, :, ::2, ::2], (1, 0, 0, 1))
        return torch.cat([part.flatten(1), F.max_pool2d(x, 2).flatten(1), x.mean(dim=(2, 3))], dim=1)


def normalised(channels: int) -> nn.Module:
    """Batch normalisation with statistics of its own."""
    layer = nn.BatchNorm2d(channels)
    layer.running_mean, layer.running_var = torch.randn(channels) / 4, torch.rand(channels) + 0.5
    return layer


class Magnitude(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@pytest.mark.parametrize(
    ("layers", "score"),
    [
        (lambda: [normalised(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()], Energy()),
        (lambda: [nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()], MaxLogit()),
        (lambda: [nn.Hardtanh(-0.2, 0.3), nn.MaxPool2d(2), nn.Flatten()], Energy()),
        (lambda: [Magnitude(), nn.Flatten(), nn.LazyLinear(5), nn.LeakyReLU(0.1)], Energy()),
        (lambda: [Joined()], MaxLogit()),
    ],
    ids=["batch-norm", "relu6", "hardtanh-max", "abs-leaky", "joined"],
)
def test_networks_of_other_layers_have_certificates(layers: Any, score: Score, tmp_path: Path) -> None:
    """That hold by the checker, of decisions that PyTorch does not find changed; beyond some radius there is none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), *layers(), nn.LazyLinear(3)).eval()
    images = torch.rand(12, 1, 8, 8)
    with torch.no_grad():
        logits = model(images)
        scores = score(logits)
    order = scores.argsort()
    threshold = float(scores[order[5]] + scores[order[6]]) / 2
    detector = Detector(model, score, threshold, "mine", (1, 8, 8), tuple("abc"), (0.0,), (1.0,))
    run_ = CertifiedRun(detector, Settings(eps=(0.002,)), [], {})
    write_onnx(model, (1, 8, 8), tmp_path / "network.onnx")
    asked = []
    for place, eps in ((order[0], 0.002), (order[-1], 0.002), (order[0], 0.7), (order[-1], 0.7)):
        accepted = float(scores[place]) <= threshold
        condition = score.condition(logits[place].double().tolist(), threshold, accepted=accepted)
        assert condition is not None
        image = images[place].numpy()
        record: Any = SimpleNamespace(accepted=accepted)
        asked.append(Conditioned(Claim("one", record, eps, math.inf, image, image, image), condition, proved=True))
    graph = capture(model, torch.zeros(1, 1, 8, 8))
    found = [one.certificate for one in certificates(run_, graph, asked, tmp_path / "network.onnx")]
    assert [one is not None for one in found] == [True, True, False, False]
    network = read_network(tmp_path / "network.onnx")
    for one, certificate in zip(asked[:2], found[:2], strict=True):
        assert certificate is not None
        margin = float(certificate.margin(network))
        assert margin > 0
        noise = one.claim.eps * torch.randn(500, 1, 8, 8).sign()
        with torch.no_grad():
            sampled = score(model((torch.from_numpy(one.claim.image) + noise).clamp(0, 1)))
        least = (threshold - sampled if certificate.accepted else sampled - threshold).min()
        assert margin <= float(least) + 1e-6
        assert margin >= 0.3 * float(least)


@pytest.fixture(scope="module")
def guarded(certified: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claims of a guard beside the network of `certified`."""
    folder = tmp_path_factory.mktemp("guarded")
    changes = [
        "training.epochs=12",
        "certified.start=1",
        "certified.ramp=6",
        "optimiser.decay_start=8",
        "run.device=cpu",
    ]
    fit(load_recipe("digits-guard", [*changes, f"guard.of={certified}"]), folder / "run", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify_run, "draw_figures", lambda *_: [])
        done("certify", folder / "run", "--limit", "5", "--eps", "0.004,0.02", *SETS)
    done("export", folder / "run", "--limit", "3", "--out", folder / "claims", *SETS)
    return folder / "claims"


def test_claims_of_a_guarded_detector_have_certificates_of_its_guard(guarded: Path) -> None:
    claims = manifest(guarded)["claims"]
    assert {claim["accepted"] for claim in claims} == {True, False}
    assert all(claim["certificate"] and claim["condition_proved"] for claim in claims)
    assert f"certificates: {len(claims)} of {len(claims)} hold" in done("check", guarded)
    detector = load_checkpoint(guarded.parent / "run")
    score, gamma = detector.score.parameters, detector.threshold
    assert gamma is not None
    for claim in claims:
        certificate = json.loads((guarded / claim["certificate"]).read_text())
        assert (certificate["classes"], certificate["temperature"]) == (1, 0.0)
        sigma, alpha = Fraction(score["sigma"]), Fraction(score["alpha"])
        level = Fraction(certificate["threshold"])
        # Beyond its own threshold the guard decides whatever the classifier says: −f/σ + [0, α] lies on one side of γ.
        off = sigma * (Fraction(gamma) - alpha) - level if claim["accepted"] else level - sigma * Fraction(gamma)
        assert 0 <= off <= 2**-50 * max(abs(level), 1)
    # The exported network of conditions is the guard alone.
    image = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    found = session(guarded / "conditions" / "network.onnx").run(None, {"X": image})[0]
    with torch.no_grad():
        expected = detector.model.guard(torch.from_numpy(image))  # type: ignore[operator]
    assert found.shape == (1, 1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "the certificate's threshold is"),
        ({"alpha": 100.0}, "the certificate's threshold is"),
        ({"sigma": 1e-3}, "the certificate's threshold is"),
        ({"sigma": -1.0}, "expected sigma > 0"),
        ({"sigma": None}, "expected a finite number as sigma"),
        ({"sigma": "1.5"}, "expected a finite number as sigma"),
        ({"alpha": True}, "expected a finite number as alpha"),
        ({"alpha": math.inf}, "expected a finite number as alpha"),
        ({"sigma": 1.7e308, "alpha": 1.7e308}, "at a number beyond float64"),
        ({"name": "energy", "temperature": 1.0}, "the certificate's threshold is"),
        ({"name": "msp"}, "there are no certificates of the score msp"),
    ],
    ids=str,
)
def test_a_guarded_score_that_is_described_otherwise_is_found(
    change: dict[str, Any], message: str, guarded: Path, tmp_path: Path
) -> None:
    shutil.copytree(guarded, tmp_path / "claims")
    content = manifest(tmp_path / "claims")
    content["detector"]["score"] |= change
    (tmp_path / "claims" / "claims.json").write_text(json.dumps(content))
    found = run("check", tmp_path / "claims", "--points", "0")
    assert found.exit_code == 1
    assert message in " ".join(found.output.split())


@pytest.mark.parametrize(("alpha", "change"), [(None, -50), (None, 50), (1e9, -50)])
def test_the_network_of_scores_must_have_the_guard_of_the_conditions(
    alpha: float | None, change: float, guarded: Path, tmp_path: Path
) -> None:
    """Its score lies between what the guard alone gives and α more; another network's does not, however large α is said to be."""
    from tests.certood.exported_claims import rehash

    shutil.copytree(guarded, tmp_path / "claims")
    content = manifest(tmp_path / "claims")
    content["detector"]["score"]["alpha"] = alpha or content["detector"]["score"]["alpha"]
    (tmp_path / "claims" / "claims.json").write_text(json.dumps(content))
    path = tmp_path / "claims" / "scores" / "network.onnx"
    model = onnx.load(path)
    shift = onnx.numpy_helper.from_array(np.array([change], dtype=np.float32), "shift")
    model.graph.initializer.append(shift)
    model.graph.node.append(onnx.helper.make_node("Add", [model.graph.output[0].name, "shift"], ["shifted"]))
    model.graph.output[0].name = "shifted"
    onnx.save(model, path)
    rehash(tmp_path / "claims")
    found = run("check", tmp_path / "claims")
    assert found.exit_code == 1
    rejected = next(claim["name"] for claim in content["claims"] if not claim["accepted"])
    assert any(
        problem.startswith(f"{rejected}: scores/network.onnx gives the score")
        for problem in check_folder(tmp_path / "claims").wrong
    )


def test_a_guard_whose_output_is_near_zero_is_compared_by_what_it_is_a_sum_of(guarded: Path, tmp_path: Path) -> None:
    """Where its last sum cancels, rounding is no share of the sum."""
    detector, out = load_checkpoint(guarded.parent / "run"), tmp_path / "run"
    claim = next(one for one in manifest(guarded)["claims"] if not one["accepted"])
    image = torch.tensor(json.loads((guarded / claim["certificate"]).read_text())["centre"]).reshape(1, 1, 8, 8)
    guard = detector.model.get_submodule("guard")
    (*_, last) = (module for module in guard.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        shift = guard(image)[0]
        last.bias -= shift
        assert abs(guard(image).item()) < 1e-5 * abs(shift.item())
    out.mkdir()
    shutil.copy(guarded.parent / "run" / "recipe.toml", out)
    assert detector.threshold is not None
    threshold = detector.threshold + shift.item() / detector.score.parameters["sigma"]
    save_checkpoint(replace(detector, threshold=threshold), out / "checkpoint.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify_run, "draw_figures", lambda *_: [])
        done("certify", out, "--limit", "1", "--eps", "1e-6", *SETS)
    done("export", out, "--out", tmp_path / "claims", *SETS)
    names = [one["name"] for one in manifest(tmp_path / "claims")["claims"]]
    assert any(name.startswith(claim["name"].rpartition("-")[0]) for name in names)
    assert f"certificates: {len(names)} of {len(names)} hold" in done("check", tmp_path / "claims")
