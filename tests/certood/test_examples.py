"""The examples run as they are."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from certood.analysis import certify_run
from certood.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_script(name: str, *arguments: str) -> None:
    """What `python NAME ARGUMENTS` does, in this process: another one would import all libraries again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.syspath_prepend(str(EXAMPLES))
        patch.delitem(sys.modules, "their_network", raising=False)
        patch.chdir(EXAMPLES)
        patch.setattr(certify_run, "draw_figures", lambda *_: [])
        runpy.run_path(name, run_name="__main__")


@pytest.mark.slow
def test_the_researcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("researcher.py", str(tmp_path / "study"))
    output = capsys.readouterr().out
    shown = {name: float(value) for name, value in re.findall(r"(\S+): mean FPR95 ([\d.]+) %", output)}
    for name, value in shown.items():
        stored = json.loads((tmp_path / "study" / name / "evaluation.json").read_text("utf-8"))
        assert value == round(100 * stored["scores"]["energy"]["mean"]["fpr95"], 1)
    assert set(shown) == {"ce", "greg"}
    assert output.count("of 10 images") == 2
    assert (tmp_path / "study" / "report.html").read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.slow
def test_the_verifier(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_script("verifier.py", str(tmp_path))
    output = capsys.readouterr().out
    assert re.search(r"\d+ operations, 0 cannot be bounded", output)
    found = re.findall(r"holds within ([\d.]+), changes within (inf|[\d.]+)", output)
    assert len(found) == 16
    assert all(float(certified) <= float(attack) for certified, attack in found)
    assert sum(float(certified) > 0 for certified, _ in found) > 8
    monkeypatch.chdir(EXAMPLES)
    words = ("--architecture", "their_network:make", "--classes", "6", "--input-shape", "1,8,8")
    inspected = CliRunner().invoke(main, ["inspect", str(tmp_path / "weights.pt"), *words])
    assert inspected.exit_code == 0, inspected.output


CERTOOD = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done > "$FOLDER/$1"
[ "$1" != train ] || touch "$FOLDER/checkpoint.safetensors"
[ "$1" != certify ] || exit 1
"""


@pytest.mark.slow
def test_the_gate_of_the_safety_engineer(tmp_path: Path) -> None:
    """The shell calls a command that only notes its words, and fails as a gate does; then this process runs them."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "certood"
    command.write_text(CERTOOD)
    command.chmod(0o755)
    folder = tmp_path / "release"
    folder.mkdir()
    environment = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "FOLDER": str(folder)}
    shell = ["sh", str(EXAMPLES / "safety_engineer.sh"), str(folder), "certified_fraction@digits>=1"]
    assert subprocess.run(shell, env=environment, check=False).returncode == 1
    train, inspect, certify = ((folder / name).read_text().splitlines() for name in ("train", "inspect", "certify"))
    # What is trained already is not trained again.
    (folder / "train").unlink()
    assert subprocess.run(shell, env=environment, check=False).returncode == 1
    assert not (folder / "train").exists()
    shutil.rmtree(folder)

    for words in (train, inspect):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    failed = CliRunner().invoke(main, certify)
    assert failed.exit_code == 1
    # Only this one of its three requirements does not hold, and the gate says so.
    assert re.search(
        r"Error: required, but not so: certified_fraction@digits>=1: digits has [\d.]+ and, decisive, [\d.]+\n$",
        failed.stderr,
    )
    # What is certified already is not done again; with the gate's own requirement it passes.
    passed = CliRunner().invoke(main, [*certify[:-1], "certified_fraction@digits>=0.5"])
    assert passed.exit_code == 0, passed.output
