"""The notebook runs from its first cell to its last, and is kept without outputs."""

import json
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/first_steps.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_holds_no_outputs_and_is_run_in_public() -> None:
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS if cell["cell_type"] == "code"
    )
    assert NOTEBOOK.relative_to(ROOT).as_posix() in (ROOT / ".github/workflows/tests.yml").read_text("utf-8")


@pytest.mark.slow
def test_it_runs_in_two_minutes(capsys: pytest.CaptureFixture[str]) -> None:

    began = time.process_time()
    scope: dict[str, Any] = {}
    with mpl.rc_context({"backend": "agg"}):
        for number, source in enumerate(CODE):
            exec(compile(source, f"cell {number}", "exec"), scope)
    # Processor time of one thread, since the machine may be busy.
    assert time.process_time() - began < 240
    shown = capsys.readouterr().out
    assert shown.count("median certified radius of ID images") == len(scope["recipes"]) == 2
    assert (scope["folder"] / "report.html").is_file()
