"""`certood demo` on two of its recipes: interrupted it continues, done it is skipped, changed it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from certood.analysis import certify_run
from certood.cli import demo, main
from certood.train import loop


def run_demo(out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", "--out", str(out), "--epochs", "1", "--limit", "1", *arguments])


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("this was done before")


@pytest.mark.parametrize("name", demo.RECIPES)
def test_every_recipe_fits_any_number_of_epochs(name: str) -> None:
    usual, short = demo._recipe(name, 3, None), demo._recipe(name, 3, 1)
    assert (short.training.epochs, short.run.seed, usual.run.seed) == (1, 3, 3)
    if usual.certified is not None:
        assert short.certified is not None
        whole, part = (found.certified.schedule(found.training.epochs, 10) for found in (usual, short))
        assert part(9) == whole(whole.steps * usual.training.epochs - 1) == usual.certified.eps
        assert part(4) == pytest.approx(whole(usual.training.epochs * 5 - 1), rel=0.2)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_the_demo_continues_after_an_interruption_and_skips_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "RECIPES", ("ce", "greg"))
    out, certify_sets = tmp_path / "demo", certify_run.certify_sets

    def interrupted(detector: Any, inside: Any, outside: Any, run: Path, *rest: Any, **extra: Any) -> Any:
        if run.name == "greg":
            raise KeyboardInterrupt
        return certify_sets(detector, inside, outside, run, *rest, **extra)

    monkeypatch.setattr(certify_run, "certify_sets", interrupted)
    first = run_demo(out)
    assert first.exit_code == 130
    assert "the same command continues" in first.stderr
    assert (out / "ce" / "certification.json").is_file()
    assert not (out / "report.html").exists()
    weights = (out / "greg" / "checkpoint.safetensors").read_bytes()

    monkeypatch.setattr(certify_run, "certify_sets", certify_sets)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", refuse)
        second = run_demo(out)
    assert second.exit_code == 0, second.output
    assert second.output.count("trained and evaluated before") == 2
    assert f"certified before: {out / 'ce'}" in second.output
    assert f"-> {out / 'greg'}/ certificates.csv" in second.output
    assert (out / "greg" / "checkpoint.safetensors").read_bytes() == weights
    stored = json.loads((out / "greg" / "certification.json").read_text())
    assert f"certified {stored['sets']['digits']['median_radius_certified']:.4f}" in second.output

    (out / "report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", refuse)
        patch.setattr(certify_run, "certify_sets", refuse)
        third = run_demo(out)
    assert third.exit_code == 0, third.output
    assert third.output.count("certified before") == 2
    assert "<strong>greg</strong> (γ = " in (out / "report.html").read_text("utf-8")

    # Another seed is another demo: neither skipped silently nor replaced without being asked.
    other = run_demo(out, "--seed", "3")
    assert other.exit_code == 2
    assert "trained with another recipe (run.seed: 0 there, 3 here)" in other.stderr


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run_demo(tmp_path / "file")
    assert result.exit_code == 2
    assert "cannot write the run directory" in result.stderr
    assert "Traceback" not in result.output
