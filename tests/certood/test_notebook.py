"""The notebook runs from its first cell to its last, and is kept without outputs."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/first_steps.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
# The notebook as it stands is run in public; here with less training and fewer images.
SHORTER = {"training.epochs=12": "training.epochs=2", "limit=6": "limit=2"}


def test_it_holds_no_outputs_and_is_run_in_public() -> None:
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS if cell["cell_type"] == "code"
    )
    assert NOTEBOOK.relative_to(ROOT).as_posix() in (ROOT / ".github/workflows/tests.yml").read_text("utf-8")


def shorter(source: str) -> str:
    for whole, part in SHORTER.items():
        source = source.replace(whole, part)
    return source


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(sum(source.count(whole) for source in CODE) == 1 for whole in SHORTER)
    scope: dict[str, Any] = {}
    with mpl.rc_context({"backend": "agg"}):
        for number, source in enumerate(map(shorter, CODE)):
            exec(compile(source, f"cell {number}", "exec"), scope)
    shown = capsys.readouterr().out
    assert shown.count("median certified radius of ID images") == len(scope["recipes"]) == 2
    assert (scope["folder"] / "report.html").is_file()
