"""Ctrl-C and SIGTERM in every command: one line that says how to go on, and the exit codes 130 and 143."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from certood.cli import main
from certood.train.loop import fit
from certood.train.recipe import load_recipe
from tests.analysis.certificate_rows import rows

FAST = ("--set", "training.epochs=2", "--set", "training.steps_per_epoch=2", "--set", "run.device=cpu")
FEW = ("--limit", "4", "--ood", "digits-near", "--batch-size", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("interrupted") / "run"
    fit(load_recipe("digits-ce", [part for part in FAST if part != "--set"]), out, progress=False)
    return out


COMMANDS: dict[str, tuple[Callable[[Path, Path], list[str]], str, str]] = {
    "train": (
        lambda _, out: ["train", "digits-ce", *FAST, "--out", str(out)],
        "certood.train.loop.train_epoch",
        "Whole epochs are kept in OUT; the same command with --resume continues.",
    ),
    "overwriting": (
        lambda run, _: ["train", "digits-ce", *FAST, "--out", str(run), "--overwrite"],
        "certood.train.loop.train_epoch",
        "the same command with --resume instead of --overwrite continues.",
    ),
    "study": (
        lambda _, out: ["study", "examples/study.toml", *FAST, "--out", str(out)],
        "certood.train.loop.train_epoch",
        "What was done is kept in OUT; the same command continues.",
    ),
    "evaluate": (lambda run, _: ["evaluate", str(run)], "certood.evaluation.collect_logits", "run the same command again."),
    "certify": (
        lambda run, out: ["certify", str(run), "--limit", "1", "--out", str(out)],
        "certood.analysis.workers.certify",
        "Finished images are kept in OUT; the same command continues.",
    ),
    "report": (
        lambda run, out: ["report", str(run), "--out", str(out / "r.html")],
        "certood.analysis.reporting.page.verdict",
        "run the same command again.",
    ),
    "compare": (
        lambda run, out: ["compare", str(run), "--json", str(out / "c.json")],
        "certood.analysis.reporting.arms.arms_of",
        "run the same command again.",
    ),
    "inspect": (lambda run, _: ["inspect", str(run)], "certood.analysis.bounds.list_operations", "run the same command again."),
    "demo": (
        lambda _, out: ["demo", "--out", str(out), "--epochs", "1"],
        "certood.train.loop.train_epoch",
        "What was done is kept in OUT; the same command continues.",
    ),
    "data check": (lambda *_: ["data", "check", "digits"], "certood.data.check.describe", "run the same command again."),
}  # fmt: skip


@pytest.mark.parametrize("signalled", [False, True], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_says_how_to_go_on(
    name: str, signalled: bool, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, target, line = COMMANDS[name]
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file() and path.name[0] != "."}

    def interrupted(*_: Any, **__: Any) -> None:
        if signalled:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(target, interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(main, arguments(trained, tmp_path / "out"))
    assert result.exit_code == (143 if signalled else 130), result.output
    assert signal.getsignal(signal.SIGTERM) == handler
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Terminated. " if signalled else "Interrupted. ")
    assert last.endswith(line.replace("OUT", str(tmp_path / "out")))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_processes_of_a_certification_end_with_it_and_another_continues(trained: Path, tmp_path: Path) -> None:
    """What two processes certified is what one certifies, and what is left is done by the next command."""
    asked = ("certify", str(trained), *FEW, "--out")
    command = [sys.executable, "-m", "certood", *asked, str(tmp_path / "out"), "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    path, end = tmp_path / "out" / "certificates.csv", time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert b"Terminated. Finished images are kept" in process.stderr.read()
    assert process.wait() == 143
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("a process of the certification is still there")

    begun = rows(tmp_path / "out")
    assert 0 < len(begun) < 8
    for folder in ("out", "whole"):
        assert CliRunner().invoke(main, [*asked, str(tmp_path / folder)]).exit_code == 0
    whole = rows(tmp_path / "whole")
    assert all(row in whole for row in begun)
    assert rows(tmp_path / "out") == whole
