"""`certood export` on a small certified run: files, boxes, properties against the network, and what it refuses."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from torch import nn

from certood.analysis import certify_run
from certood.analysis.claims.certified_run import _short, certified_run
from certood.analysis.claims.networks import EXACT_TOLERANCE, compared, write_onnx
from certood.checkpoints import load_checkpoint, save_checkpoint
from certood.claims.vnnlib_reading import read_vnnlib
from certood.cli import main
from certood.data import to_pixels
from certood.detector import Detector
from certood.runs import load_run_data
from certood.train.loop import fit
from certood.train.recipe import load_recipe

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
    from certood.analysis.bounds import capture
    from certood.analysis.claims.certificates import certificates
    from certood.analysis.claims.conditions import conditioned

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
