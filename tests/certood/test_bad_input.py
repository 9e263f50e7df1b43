"""Bad input on the command line: one clear error, the right exit code, nothing lost."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from certood.cli import main
from certood.train.loop import fit
from certood.train.recipe import load_recipe


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def npz(path: Path, shape: tuple[int, ...] = (40, 8, 8), classes: int = 2, **more: np.ndarray) -> str:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(shape[0]) % classes, **more)
    return f"npz:{path}"


def folders(root: Path, *, empty: bool = False, shape: tuple[int, int] = (8, 8)) -> str:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for index in range(20):
            Image.fromarray(np.full((*shape, 3), index, np.uint8)).save(root / label / f"{index}.png")
    if empty:
        (root / "c").mkdir()
    return f"folder:{root}"


def ce(data: str, *settings: str) -> list[str]:
    own = [f"data.id={data}", "data.ood=[]", "training.epochs=1", "training.batch_size=8"]
    return ["train", "digits-ce", *[part for setting in (*own, *settings) for part in ("--set", setting)]]


CASES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "unknown recipe": (lambda _: ["train", "digits-greg-pluss"], "did you mean 'digits-greg-plus'"),
    "unknown key": (lambda _: ["train", "--set", "training.epoch=1"], "did you mean 'training.epochs'"),
    "unknown set": (lambda _: ["train", "--set", "data.id=digit"], "did you mean 'digits'"),
    "unknown architecture": (lambda _: ["train", "--set", "model.architecture=resnet81"], "did you mean 'resnet18'"),
    "missing data": (lambda _: ["train", "cifar10-ce"], "certood data fetch cifar10"),
    "missing npz": (lambda tmp: ce(f"npz:{tmp}/gone.npz"), "no file"),
    "corrupt npz": (lambda tmp: ce(f"npz:{_write(tmp / 'x.npz', b'PK nothing')}"), "not a readable npz file"),
    "empty class folder": (lambda tmp: ce(folders(tmp / "set", empty=True)), "holds no pictures"),
    "wrong channel count": (lambda tmp: ce(npz(tmp / "x.npz", (40, 8, 8, 3))), "all image sets must have one shape"),
    "channels of a network": (
        lambda tmp: ce(npz(tmp / "x.npz"), "model.architecture=torchvision:resnet18"),
        "takes 3 channels, the images have 1",
    ),
    "not square": (lambda tmp: ce(folders(tmp / "set", shape=(8, 12))), "12×8, not square"),
    "too small": (
        lambda tmp: ce(npz(tmp / "x.npz", (40, 8, 8, 3)), "data.auxiliary=", "model.architecture=torchvision:vgg11"),
        "does not take images of shape",
    ),
    "shapes differ": (lambda tmp: ce(npz(tmp / "x.npz", (40, 9, 9))), "(1, 9, 9)"),
    "gpu asked for": (lambda _: ["train", "--device", "cuda:7"], "this machine has"),
    "unknown device": (lambda _: ["train", "--device", "tpux"], "expected auto, cpu, cuda"),
    "no class": (lambda tmp: ce(_unlabelled(tmp / "x.npz")), "has no labels"),
    "one class": (lambda tmp: ce(npz(tmp / "x.npz", classes=1)), "at least 2 in-distribution classes"),
    "batch too large": (lambda _: ["train", "--set", "training.batch_size=5000"], "make it smaller"),
    "no initial weights": (
        lambda tmp: ["train", "--init", str(tmp / "gone")],
        "which is not there: name another with --init PATH",
    ),
    "a run of nothing": (lambda tmp: ["evaluate", str(tmp)], "has no checkpoint.safetensors"),
    "unknown score": (lambda _: ["evaluate", "RUN", "--score", "enery"], "did you mean 'energy'"),
    "two files in one": (
        lambda tmp: ["evaluate", "RUN", "--out", f"{tmp}/x.json", "--openood-csv", f"{tmp}/./x.json"],
        "give each a file of its own",
    ),
    "fetch what cannot be": (lambda _: ["data", "fetch", "digits"], "cannot be fetched"),
    "resumed and overwritten": (lambda _: ["train", "--resume", "--overwrite"], "leave one out"),
    "a list and a training": (lambda _: ["train", "--list", "digits-ce"], "--list trains nothing"),
    "a width below 1": (
        lambda _: ["train", "--set", "model.options.width=-1"],
        "width is a whole number from 1 on, found -1",
    ),
    "half a width": (
        lambda _: ["train", "--set", "model.options.width=1.5"],
        "width is a whole number from 1 on, found 1.5",
    ),
    "no width": (
        lambda _: ["train", "--set", "model.options.width=nan"],
        "width is a whole number from 1 on, found nan",
    ),
    "a set that may share, misspelt": (
        lambda _: ["evaluate", "RUN", "--ood", "digits-near", "--allow-shared", "digits-nera"],
        "digits-nera may share pictures, but is none of the sets: digits, digits-auxiliary, digits-near",
    ),
    "check what is not there": (lambda _: ["data", "check", "svhn"], "certood data fetch svhn"),
}


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _unlabelled(path: Path) -> str:
    np.savez(path, images=np.zeros((9, 8, 8), np.uint8))
    return f"npz:{path}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run."""
    out = tmp_path_factory.mktemp("bad") / "run"
    fit(load_recipe("digits-ce", ["training.epochs=1", "run.device=cpu"]), out, progress=False)
    return out


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error(case: str, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build, message = CASES[case]
    result = run(*[str(finished) if argument == "RUN" else argument for argument in build(tmp_path)])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "runs").exists()


def test_a_run_is_never_overwritten_unasked(finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    result = run("train", "digits-ce", "--out", str(finished))
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/self/mounts").exists(), reason="needs a place that refuses writes"
)
def test_an_unwritable_place_is_named_before_training() -> None:
    result = run("train", "digits-ce", "--out", "/proc/certood/run")
    assert result.exit_code == 2
    assert "cannot write the run directory" in result.stderr


@pytest.mark.parametrize(("keep", "message"), [(0.5, "may be truncated"), (0.0, "may be truncated")])
def test_a_truncated_checkpoint_is_named(finished: Path, tmp_path: Path, keep: float, message: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    path = copy / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    result = run("evaluate", str(copy))
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    result = run("evaluate", str(tmp_path / "foreign.safetensors"))
    assert result.exit_code == 2
    assert "--architecture" in result.stderr


def test_foreign_weights_that_are_not_there_are_not_asked_for_their_classes(tmp_path: Path) -> None:
    result = run("evaluate", str(tmp_path / "absent.safetensors"), "--architecture", "resnet20")
    assert result.exit_code == 2
    assert "no checkpoint" in result.stderr


def test_a_checkpoint_that_was_moved_keeps_its_split(finished: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone.safetensors"
    shutil.copy(finished / "checkpoint.safetensors", lone)
    result = run("evaluate", str(lone), "--ood", "digits-near", "--bootstrap", "20")
    assert result.exit_code == 0, result.output
    moved, own = (json.loads((folder / "evaluation.json").read_text()) for folder in (tmp_path, finished))
    assert (moved["n_id"], moved["accuracy"]) == (own["n_id"], own["accuracy"])
    one, two = (found["scores"]["energy"]["sets"]["digits-near"] for found in (moved, own))
    assert {key: one[key] for key in two} == two


def test_a_checkpoint_without_a_split_needs_the_set_named(finished: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from certood.checkpoints import load_checkpoint, save_checkpoint

    lone = tmp_path / "lone.safetensors"
    save_checkpoint(replace(load_checkpoint(finished), split=None), lone)
    assert "name them with --id" in run("evaluate", str(lone)).stderr


def test_a_traceback_comes_with_debug_only() -> None:
    assert "Traceback" in run("--debug", "train", "nothing").output
    assert "Traceback" in run("train", "nothing", "--debug").output
    assert "Traceback" not in run("train", "nothing").output


def test_calibrating_stores_a_threshold(finished: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from certood.checkpoints import load_checkpoint, save_checkpoint

    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    known = load_checkpoint(copy).threshold
    save_checkpoint(replace(load_checkpoint(copy), threshold=None), copy / "checkpoint.safetensors")
    assert run("evaluate", str(copy), "--calibrate").exit_code == 0
    assert load_checkpoint(copy).threshold == pytest.approx(known, rel=1e-6)


def test_listing_works_without_any_data(tmp_path: Path) -> None:
    result = run("data", "list", "--data-root", str(tmp_path))
    assert result.exit_code == 0
    assert "emnist-letters" in result.output
    assert "digits-greg-plus" in run("train", "--list").output
