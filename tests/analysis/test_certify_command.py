"""`certood certify` on a small trained run: its numbers, its files, resuming, several processes, and what it refuses."""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from certood.analysis import certify, certify_run, workers
from certood.analysis.bounds.engines.auto_lirpa import load_auto_lirpa
from certood.analysis.records import read_certificates
from certood.analysis.summary import RUN_NUMBERS, entry_numbers
from certood.checkpoints import load_checkpoint, save_checkpoint
from certood.cli import main
from certood.errors import CertoodError
from certood.train.loop import fit
from certood.train.recipe import load_recipe
from tests.analysis.certificate_rows import rows
from tests.quick import first_is_quick

SETS = ("--ood", "digits-near", "--ood", "digits-smooth")
SMALL = ("--limit", "6", "--batch-size", "4", "--eps", "0.02,1/300", *SETS)
EPS = (0.02, 1 / 300)


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certify") / "run"
    fit(load_recipe("digits-greg", ["training.epochs=4", "run.device=cpu"]), out, progress=False)
    return out


@pytest.fixture(scope="module")
def certified(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted certification."""
    out = tmp_path_factory.mktemp("certify") / "whole"
    result = run("certify", trained, *SMALL, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_the_summary_is_what_the_certificates_say(certified: Path) -> None:
    table, summary = rows(certified), json.loads((certified / "certification.json").read_text())
    assert summary["eps"] == list(EPS)
    assert (summary["norm"], summary["method"], summary["dtype"], summary["violations"]) == (
        "inf",
        "crown",
        "float32",
        0,
    )
    assert set(summary["sets"]) == {"digits", "digits-near", "digits-smooth"}
    inside = [row for row in table if row["set"] == "digits"]
    for name, entry in summary["sets"].items():
        own = [row for row in table if row["set"] == name]
        assert entry["n"] == len(own) == 6
        assert {row["kind"] for row in own} == {entry["kind"]}
        for place, column in enumerate(("0.02", repr(1 / 300))):
            for verdict in ("certified", "refuted"):
                share = np.mean([row[f"verdict@{column}"] == verdict for row in own])
                assert entry[f"{verdict}_fraction"][place] == pytest.approx(share)
        for number in ("radius_certified", "radius_attack"):
            assert entry[f"median_{number}"] == pytest.approx(np.median([float(row[number]) for row in own]))
        if name == "digits":
            continue

        def auc(low: list[float], high: list[float]) -> float:
            return float(np.mean([[b > a for a in low] for b in high]))

        clean = [float(row["score"]) for row in inside]
        assert entry["auc"] == pytest.approx(auc(clean, [float(row["score"]) for row in own]))
        for place, column in enumerate(("0.02", repr(1 / 300))):
            lower, attacked = ([float(row[f"{part}@{column}"]) for row in own] for part in ("lower", "attacked"))
            upper = [float(row[f"upper@{column}"]) for row in inside]
            assert entry["gauc"][place] == pytest.approx(auc(clean, lower))
            assert entry["aauc"][place] == pytest.approx(auc(clean, attacked))
            assert entry["both_sided"]["gauc"][place] == pytest.approx(auc(upper, lower))
            assert entry["gauc"][place] <= entry["aauc"][place] <= entry["auc"]
            assert entry["both_sided"]["aauc"][place] <= entry["aauc"][place]
            threshold = float(own[0]["threshold"])
            assert entry["gfpr95"][place] == pytest.approx(np.mean([value <= threshold for value in lower]))
            assert entry["fpr95"] <= entry["afpr95"][place] <= entry["gfpr95"][place]
    # The wider ball knows less: what is certified there is certified in the narrower one.
    for row in table:
        assert float(row["lower@0.02"]) <= float(row[f"lower@{1 / 300!r}"]) <= float(row["score"])
        assert float(row["radius_certified"]) <= float(row["radius_attack"])


def test_the_summary_has_the_numbers_that_can_be_required(certified: Path) -> None:
    summary = json.loads((certified / "certification.json").read_text())
    assert set(RUN_NUMBERS) <= set(summary)
    for entry in summary["sets"].values():
        both = {f"both_sided_{name}" for name in entry.get("both_sided", ())}
        assert set(entry) - {"kind", "both_sided"} | both == set(
            entry_numbers(entry["kind"], smoothed=False, inside=True)
        )


def test_every_figure_is_drawn_twice(certified: Path) -> None:
    names = {"certified_fraction", "gradient_norms", "lipschitz", "margin_radius", "roc", "scores"}
    assert {path.name for path in (certified / "figures").iterdir()} == {
        f"{name}.{ending}" for name in names for ending in ("png", "svg")
    }


@pytest.mark.slow
def test_a_certification_that_was_interrupted_at_its_figures_has_not_ended(
    trained: Path, certified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever reads certification.json takes the certification for finished, figures included."""
    folder = tmp_path / "run"
    shutil.copytree(certified, folder)
    (folder / "certification.json").unlink()
    shutil.rmtree(folder / "figures")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(certify_run, "draw_figures", interrupted)
        assert run("certify", trained, "--out", folder, *SMALL).exit_code == 130
    assert not (folder / "certification.json").exists()
    assert run("certify", trained, "--out", folder, *SMALL).exit_code == 0
    assert (folder / "certification.json").read_bytes() == (certified / "certification.json").read_bytes()
    assert len([*(folder / "figures").iterdir()]) == len([*(certified / "figures").iterdir()])


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_what_is_done_is_not_done_again(trained: Path, certified: Path, tmp_path: Path) -> None:
    """Cut off in the middle of a row and of a batch, a certification continues to the same file."""
    shutil.copytree(certified, tmp_path / "cut")
    path = tmp_path / "cut" / "certificates.csv"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    kept = "".join(lines[:6])  # the second batch is rows 5 and 6
    path.write_text(kept + lines[6][:25])
    result = run("certify", trained, *SMALL, "--out", tmp_path / "cut")
    assert result.exit_code == 0, result.output
    assert path.read_text().startswith(kept)
    assert rows(tmp_path / "cut") == rows(certified)
    with path.open() as file:
        assert len(file.readlines()) == len(lines)
    ignored = {"seconds", "certificates_sha256"}  # each row says what time it took
    one, two = (json.loads((folder / "certification.json").read_text()) for folder in (certified, tmp_path / "cut"))
    assert {k: v for k, v in one.items() if k not in ignored} == {k: v for k, v in two.items() if k not in ignored}
    # Nothing is left to do, and nothing changes.
    before = path.read_bytes()
    assert run("certify", trained, *SMALL, "--out", tmp_path / "cut").exit_code == 0
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_several_processes_make_the_same_records(
    trained: Path, certified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With threads in the place of processes, whose start takes longest."""
    started = []

    def pool(count: int, *, mp_context: BaseContext, **options: Any) -> ThreadPoolExecutor:
        started.append((count, mp_context.get_start_method()))
        return ThreadPoolExecutor(1, **options)

    monkeypatch.setattr(workers, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(workers, "_worker", [])
    result = run("certify", trained, *SMALL, "--out", tmp_path / "out", "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert started == [(2, "spawn")]
    assert rows(tmp_path / "out") == rows(certified)


@pytest.mark.usefixtures("undrawn")
def test_a_terminal_sees_the_time_left(trained: Path, tmp_path: Path) -> None:
    arguments = ("certify", trained, "--limit", "2", *SETS[:2], "--out", tmp_path / "seen")
    result = run(*arguments, FORCE_COLOR="1")
    assert "4/4" in result.stderr
    assert "left" in result.stderr
    assert not run(*arguments, "--overwrite").stderr


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_requirements_decide_the_exit_code(trained: Path, tmp_path: Path) -> None:
    arguments = ("certify", trained, "--limit", "6", *SETS[:2], "--out", tmp_path / "out")
    result = run(*arguments, "--allow-few", "--require", "correct@digits>=0.9", "--require", "violations<=0")
    assert result.exit_code == 1
    # All of six images may be right: the interval of 6 in 6 begins at 0.025^(1/6).
    assert json.loads((tmp_path / "out" / "certification.json").read_text())["sets"]["digits"]["correct"] == 1.0
    assert "correct@digits>=0.9: digits has 1 and, decisive, 0.5407" in result.stderr
    assert "violations" not in result.stderr
    lines = result.stdout.splitlines()
    assert lines[lines.index("correct@digits>=0.9") + 1].split() == ["digits", "1", "6", "0.5407", "to", "1", "NO"]
    assert lines[lines.index("violations<=0") + 1].split() == ["the", "run", "0", "12", "–", "yes"]
    kept = ("--allow-few", "--require", "n>=6", "--require", "both_sided_gauc@digits-near>=0")
    assert run(*arguments, *kept, "--require", "correct@digits>=0.54").exit_code == 0


def test_a_gate_asks_for_a_hundred_images_before_the_work(trained: Path, tmp_path: Path) -> None:
    arguments = ("certify", trained, "--limit", "99", *SETS[:2], "--out", tmp_path / "out", "--require")
    for requirement, few in (("correct@digits>=0", "digits"), ("fpr95<=1", "digits-near"), ("auc>=0", "both")):
        result = run(*arguments, requirement)
        assert result.exit_code == 1
        shown = "digits has 99, digits-near has 99" if few == "both" else f"but {few} has 99"
        assert shown in result.stderr
        assert "--allow-few" in result.stderr
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_apply_are_errors(trained: Path, tmp_path: Path) -> None:
    smoothing = ("--method", "smoothing", "--norm", "2")
    needless: list[tuple[tuple[str, ...], str]] = [
        (("--sigma", "0.12"), "sigma says nothing without the method smoothing"),
        (("--samples", "1000"), "samples says nothing without the method smoothing"),
        (("--confidence", "0.9"), "confidence says nothing without the method smoothing"),
        (("--iterations", "20"), "iterations says nothing without the method alpha-crown"),
        ((*smoothing, "--parts", "8"), "parts says nothing of smoothing"),
        ((*smoothing, "--timeout", "8"), "timeout says nothing of smoothing"),
        ((*smoothing, "--dtype", "float32"), "dtype says nothing of smoothing"),
        ((*smoothing, "--engine", "certood"), "engine says nothing of smoothing"),
        (("--method", "interval", "--dtype", "float32"), "dtype says nothing of interval bounds"),
        (("--engine", "auto-lirpa", "--dtype", "float64"), "dtype says nothing of another engine's bounds"),
        (("--allow-few",), "--allow-few is about requirements"),
    ]
    for options, message in needless:
        result = run("certify", trained, "--limit", "2", *SETS[:2], *options, "--out", tmp_path / "out")
        assert (result.exit_code, message in result.stderr) == (2, True), (options, result.output)
    with pytest.raises(CertoodError, match="iterations says nothing without the method alpha-crown"):
        certify(trained, limit=2, iterations=5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_another_score_gets_its_own_threshold(trained: Path, tmp_path: Path) -> None:
    result = run("certify", trained, "--limit", "2", *SETS[:2], "--score", "msp", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "γ = " in result.output
    records, _ = read_certificates(tmp_path / "out" / "certificates.csv")
    detector = load_checkpoint(trained)
    assert detector.threshold is not None
    assert {-1 <= record.threshold <= -1 / 6 for record in records} == {True}
    assert json.loads((tmp_path / "out" / "certification.json").read_text())["score"] == "msp"


@pytest.mark.slow
def test_smoothing_is_kept_apart(trained: Path, tmp_path: Path) -> None:
    smoothing = ("--method", "smoothing", "--norm", "2", "--samples", "60", "--confidence", "0.95", "--eps", "0.1")
    result = run("certify", trained, "--limit", "4", *SETS[:2], *smoothing, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "certification.json").read_text())
    for entry in summary["sets"].values():
        assert set(entry) == {"kind", *entry_numbers(entry["kind"], smoothed=True, inside=True)}
    for row in rows(tmp_path / "out"):
        assert row["radius_certified"] == row["radius_attack"] == "nan"
        assert 0 <= float(row["radius_smoothing"]) < 0.12 * 3
    assert (tmp_path / "out" / "figures" / "smoothed_fraction.png").is_file()
    other = tuple("70" if part == "60" else part for part in smoothing)
    result = run("certify", trained, "--limit", "4", *SETS[:2], *other, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "other settings (smoothing.samples: 60 there, 70 here)" in result.stderr


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.usefixtures("undrawn")
def test_the_second_engine_certifies_about_the_same(trained: Path, certified: Path, tmp_path: Path) -> None:
    try:
        load_auto_lirpa()
    except CertoodError as error:
        pytest.skip(str(error))
    arguments = ("--limit", "1", "--batch-size", "4", "--eps", "0.02,1/300", *SETS)
    result = run("certify", trained, *arguments, "--engine", "auto-lirpa", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "certification.json").read_text())["method"] == "auto_LiRPA CROWN"
    own = {(row["set"], row["index"]): float(row["radius_certified"]) for row in rows(certified)}
    for row in rows(tmp_path / "out"):
        assert float(row["radius_certified"]) == pytest.approx(own[row["set"], row["index"]], rel=0.03, abs=1e-6)


def _npz(path: Path, images: np.ndarray) -> list[str]:
    np.savez(path, images=images)
    return ["--ood", f"npz:{path}"]


def _without_threshold(tmp: Path, trained: Path) -> list[str]:
    shutil.copytree(trained, tmp / "copy")
    save_checkpoint(replace(load_checkpoint(trained), threshold=None), tmp / "copy" / "checkpoint.safetensors")
    return ["--run", str(tmp / "copy")]


def _with_broken_weights(tmp: Path, trained: Path) -> list[str]:
    from safetensors import safe_open

    shutil.copytree(trained, tmp / "copy")
    path = tmp / "copy" / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    next(value for name, value in weights.items() if "weight" in name).view(-1)[0] = math.inf
    save_file(weights, path, metadata)
    return ["--run", str(tmp / "copy")]


REFUSED: dict[str, tuple[Callable[[Path, Path], list[str]], int, str]] = {
    "eps below 0": (lambda *_: ["--eps=-0.1"], 2, "0 < eps <= 1 in pixels, got [-0.1]"),
    "eps above 1": (lambda *_: ["--eps", "1.5"], 2, "0 < eps <= 1 in pixels, got [1.5]"),
    "eps no number": (lambda *_: ["--eps", "0.01;0.02"], 2, "separated by commas"),
    "eps not finite": (lambda *_: ["--eps", "nan"], 2, "separated by commas"),
    "eps twice": (lambda *_: ["--eps", "0.1,0.1"], 2, "every radius once"),
    "norm 3": (lambda *_: ["--norm", "3"], 2, "'3' is not one of 'inf', '2', '1'"),
    "smoothing in l_inf": (lambda *_: ["--method", "smoothing"], 2, "add --norm 2"),
    "second engine in l2": (lambda *_: ["--engine", "auto-lirpa", "--norm", "2"], 2, "l_inf balls only"),
    "limit 0": (lambda *_: ["--limit", "0"], 2, "--limit"),
    "unknown score": (lambda *_: ["--score", "enery"], 2, "did you mean 'energy'"),
    "no absent class": (lambda *_: ["--score", "absent-class"], 2, "trained with an absent class"),
    "limit in per cent": (lambda *_: ["--require", "gauc>60"], 2, "gauc>60: gauc is a share, from 0 to 1 and not in"),
    "unknown number": (lambda *_: ["--require", "gaucc>=0.5"], 2, "there is no 'gaucc' to require"),
    "number of another set": (lambda *_: ["--require", "gauc@svhn>=0.5"], 2, "of set 'svhn'"),
    "number of another kind": (lambda *_: ["--require", "gauc@digits>=0.5"], 2, "of set 'digits'"),
    "set on both sides": (lambda *_: ["--ood", "digits"], 2, "are the same set"),
    "no such run": (lambda tmp, _: ["--run", str(tmp / "gone")], 2, "no checkpoint"),
    "no threshold": (_without_threshold, 3, "certood evaluate RUN --calibrate"),
    "infinite weights": (_with_broken_weights, 2, "infinite or not a number"),
    "another shape": (
        lambda tmp, _: _npz(tmp / "x.npz", np.zeros((3, 9, 9), np.uint8)),
        2,
        "images of shape (1, 9, 9), the detector takes (1, 8, 8)",
    ),
    "no images": (lambda tmp, _: _npz(tmp / "x.npz", np.zeros((0, 8, 8), np.uint8)), 2, "holds no images"),
    "floats to 255": (lambda tmp, _: _npz(tmp / "x.npz", np.full((3, 8, 8), 255.0)), 2, "expected `images` of uint8"),
    "floats to 1": (lambda tmp, _: _npz(tmp / "x.npz", np.full((3, 8, 8), 0.5)), 2, "multiply images in [0, 1] by 255"),
    "not a number": (lambda tmp, _: _npz(tmp / "x.npz", np.full((3, 8, 8), np.nan)), 2, "expected `images` of uint8"),
    "a file as folder": (
        lambda tmp, _: [(tmp / "file").write_text("x") and "--out", str(tmp / "file")],
        2,
        "cannot write the run directory",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_clear_error_before_the_work(case: str, trained: Path, tmp_path: Path) -> None:
    build, code, message = REFUSED[case]
    extra = build(tmp_path, trained)
    directory = trained
    if extra[0] == "--run":
        directory, extra = Path(extra[1]), extra[2:]
    out = [] if "--out" in extra else ["--out", str(tmp_path / "out")]
    result = run("certify", directory, "--limit", "2", *SETS[:2], *extra, *out)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "certificates.csv").exists()


DAMAGED: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a number": (lambda lines: [*lines[:3], lines[3].replace("0", "o"), *lines[4:]], "line 4 is damaged"),
    "a verdict": (lambda lines: [*lines[:2], *[part.replace("certified", "cert") for part in lines[2:]]], "is damaged"),
    "a row twice": (lambda lines: [*lines, lines[1]], "image 0 of 'digits' twice"),
    "another set": (lambda lines: [*lines[:-1], lines[-1].replace("digits-smooth", "svhn")], "of 'svhn' (ood), which"),
    "another image": (lambda lines: [*lines, lines[1].replace("digits,id,0", "digits,id,1")], "image 1 of 'digits'"),
    "another kind": (lambda lines: [lines[0], lines[1].replace(",id,", ",ood,"), *lines[2:]], "'digits' (ood), which"),
    "the header": (lambda lines: [lines[0].replace("margin", "margins"), *lines[1:]], "other columns"),
}


@pytest.mark.parametrize("case", first_is_quick(DAMAGED))
def test_damaged_certificates_are_named_and_kept(case: str, trained: Path, certified: Path, tmp_path: Path) -> None:
    change, message = DAMAGED[case]
    shutil.copytree(certified, tmp_path / "copy")
    path = tmp_path / "copy" / "certificates.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    before = path.read_bytes()
    result = run("certify", trained, *SMALL, "--out", tmp_path / "copy")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "--overwrite" in result.stderr
    assert path.read_bytes() == before


def test_a_finished_certification_that_was_edited_is_not_finished_again(
    trained: Path, certified: Path, tmp_path: Path
) -> None:
    """Also where all inequalities hold, a hash of the changed file would make the change look like a result."""
    shutil.copytree(certified, tmp_path / "copy")
    path = tmp_path / "copy" / "certificates.csv"
    lines = path.read_text().splitlines()
    place = lines[0].split(",").index("seconds")
    cells = lines[1].split(",")
    path.write_text("\n".join([lines[0], ",".join([*cells[:place], "1e9", *cells[place + 1 :]]), *lines[2:]]) + "\n")
    result = run("certify", trained, *SMALL, "--out", tmp_path / "copy")
    assert result.exit_code == 2, result.output
    assert "has changed since certification.json was written" in result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_other_settings_do_not_mix(trained: Path, certified: Path, tmp_path: Path) -> None:
    shutil.copytree(certified, tmp_path / "copy")
    result = run("certify", trained, *SMALL, "--norm", "2", "--seed", "5", "--out", tmp_path / "copy")
    assert result.exit_code == 2
    assert "other settings (norm: 'inf' there, '2' here; seed: 0 there, 5 here)" in result.stderr
    assert rows(tmp_path / "copy") == rows(certified)
    small = ("--limit", "2", *SETS[:2], "--overwrite", "--out", tmp_path / "copy")
    assert run("certify", trained, *small).exit_code == 0
    assert len(rows(tmp_path / "copy")) == 4


@pytest.mark.slow
def test_a_full_disk_is_named_and_loses_nothing(
    trained: Path, certified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_later(file: int) -> None:
        calls.append(file)
        full() if len(calls) > 3 else real(file)

    write = Path.write_bytes

    def full_for_the_result(path: Path, content: bytes) -> None:
        full() if "certification.json" in path.name else write(path, content)

    out = tmp_path / "full"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_later)
        result = run("certify", trained, *SMALL, "--out", out)
    assert result.exit_code == 2
    assert "No space left on device; what was written before is kept" in result.stderr
    assert len(rows(out)) >= 6
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", full)
        result = run("certify", trained, *SMALL, "--out", out)
    assert result.exit_code == 2
    assert "cannot write figures" in result.stderr
    assert not (out / "certification.json").exists()
    monkeypatch.setattr(certify_run, "draw_figures", lambda *_: [])
    with monkeypatch.context() as patch:
        # The lock of the directory is written before the work.
        patch.setattr(Path, "write_bytes", full_for_the_result)
        result = run("certify", trained, *SMALL, "--out", out)
    assert result.exit_code == 2
    assert "certification.json: No space left on device" in result.stderr
    assert run("certify", trained, *SMALL, "--out", out).exit_code == 0
    assert rows(out) == rows(certified)
