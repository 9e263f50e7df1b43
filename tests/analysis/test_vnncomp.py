"""benchmarks/vnncomp.py on a small network: verdicts against sampling, boxes outside of [0, 1], compressed files."""

import argparse
import gzip
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")

from certood.analysis.bounds.box import Box  # noqa: E402
from certood.claims.vnnlib_reading import read_vnnlib  # noqa: E402
from certood.errors import CertoodError  # noqa: E402
from tests.certood.exported_claims import write_network  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vnncomp.py"
SIZE = 40


@pytest.fixture(scope="module")
def vnncomp() -> Any:
    specification = importlib.util.spec_from_file_location("vnncomp", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(vnncomp: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("vnncomp") / "network.onnx"
    write_network(path)
    return vnncomp.loaded(path, SIZE)


def stated(lower: np.ndarray, upper: np.ndarray, asserted: str) -> str:
    lines = [f"(declare-const X_{place} Real)" for place in range(SIZE)]
    lines += [f"(declare-const Y_{place} Real)" for place in range(3)]
    for place, (low, high) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
        lines += [f"(assert (>= X_{place} {low!r}))", f"(assert (<= X_{place} {high!r}))"]
    return "\n".join([*lines, asserted])


@pytest.mark.slow
def test_verdicts_are_those_of_dense_samples(vnncomp: Any, network: Any) -> None:
    """Over boxes of unequal sides, of which some lie outside of [0, 1]: outputs at random points say what may be verified."""
    random = np.random.default_rng(0)
    counts = {"verified": 0, "refuted": 0}
    for number in range(6):
        middle, half = random.uniform(-0.5, 1.5, SIZE), random.uniform(0, (0.01, 0.05)[number % 2], SIZE)
        lower, upper = middle - half, middle + half
        points = np.where(random.random((2000, SIZE)) < 0.5, lower, upper)
        with torch.no_grad():
            outputs = network.module(torch.from_numpy(points).view(-1, *network.shape)).numpy()
        difference = outputs[:, 0] - outputs[:, 1]
        for shift in (-0.2, 0.05, 0.6):
            level = float(difference.min() - shift * np.ptp(difference))
            text = stated(lower, upper, f"(assert (<= Y_0 (+ Y_1 {level!r})))")
            found = read_vnnlib(text)
            false = vnncomp.refuted(network, found, 50, 10, 0)
            proved = vnncomp.verified(network, found, "certood", "crown", 20)[0]
            by_parts = vnncomp.verified(network, found, "certood", vnncomp.BRANCHING, 20, 0.1)[0]
            assert by_parts >= proved
            assert not (false and by_parts)
            # A sample is a counterexample: the attack finds one at least as easily, and nothing can be verified.
            assert not (false and proved)
            if shift < 0:
                assert false
            counts["verified"] += proved
            counts["refuted"] += false
    assert counts["refuted"] >= 6
    assert counts["verified"] >= 5


@pytest.mark.slow
def test_every_case_has_to_be_excluded(vnncomp: Any, network: Any) -> None:
    """Alternatives of outputs, and of boxes, of which one is a counterexample; rows of one case of which one is enough."""
    lower = np.full(SIZE, 0.4)
    with torch.no_grad():
        y = network.module(torch.full((1, *network.shape), 0.4, dtype=torch.float64))[0].tolist()
    never, always = f"(<= Y_0 {y[0] - 1!r})", f"(<= Y_1 {y[1] + 1!r})"
    for asserted, true in (
        (f"(assert (or (and {never}) (and {never} {always})))", True),
        (f"(assert (or {never} {always}))", False),
        (f"(assert (and {never} {always}))", True),
        (f"(assert {always})", False),
        (f"(assert (< Y_0 {y[0] - 1e-9!r}))", True),
        (f"(assert (< Y_0 {y[0] + 1e-9!r}))", False),
    ):
        found = read_vnnlib(stated(lower, lower, asserted))
        for method in ("crown", vnncomp.BRANCHING):
            assert vnncomp.verified(network, found, "certood", method, 20, 0.2)[0] == true
        assert vnncomp.refuted(network, found, 3, 2, 0) == (not true)
    other = stated(lower, lower, "").replace("(assert (>= X_0 0.4))", "").replace("(assert (<= X_0 0.4))", "")
    boxes = "(assert (or (and (>= X_0 0.4) (<= X_0 0.4) {}) (and (>= X_0 0.3) (<= X_0 0.5) {})))"
    for first, second, expected in ((never, never, True), (never, always, False), (always, never, False)):
        found = read_vnnlib(other + boxes.format(first, second))
        assert vnncomp.verified(network, found, "certood", "crown", 20)[0] == expected


@pytest.mark.slow
def test_a_folder_of_the_competition(vnncomp: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "vnnlib").mkdir()
    reading = write_network(tmp_path / "network.onnx")
    (tmp_path / "onnx" / "n.onnx.gz").write_bytes(gzip.compress((tmp_path / "network.onnx").read_bytes()))
    middle = reading.value(np.full(SIZE, 0.5))
    lower, upper = np.full(SIZE, 0.495), np.full(SIZE, 0.505)
    lines = []
    for name, level in (("true", float(middle[0]) - 5), ("false", float(middle[0]))):
        text = stated(lower, upper, f"(assert (<= Y_0 {level!r}))").encode()
        (tmp_path / "vnnlib" / f"{name}.vnnlib.gz").write_bytes(gzip.compress(text))
        lines.append(f"onnx/n.onnx,vnnlib/{name}.vnnlib.gz,60\n")
    (tmp_path / "instances.csv").write_text("".join(lines))
    arguments = argparse.Namespace(
        limit=None,
        engines=["certood"],
        methods=["interval", "crown"],
        iterations=5,
        steps=20,
        restarts=4,
        timeout=60.0,
    )
    table = vnncomp.measured(tmp_path, arguments)
    assert [(row["verified"], row["refuted"], row["unknown"]) for row in table][1] == (1, 1, 0)
    assert len(capsys.readouterr().out.splitlines()) == 2


@given(st.integers(0, 10**6), st.sampled_from([torch.float64, torch.float32]))
def test_the_least_of_a_row_over_a_box(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, 2, 1, 2, 2, generator=generator, dtype=torch.float64).sort(0).values
    box, rows = Box(*ends), torch.randn(2, 3, 1, 2, 2, generator=generator).to(dtype)
    found = box.least(rows)
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64).view(16, 1, 1, 2, 2)
    points = torch.where(corners == 0, box.lower, box.upper) - box.centre
    least = (rows.double()[None] * points[:, :, None]).flatten(3).sum(3).amin(0)
    assert bool((found <= least).all())
    assert bool((found >= least - (1e-13 if dtype == torch.float64 else 1e-5)).all())
    assert bool(((box.centre >= box.lower) & (box.centre <= box.upper)).all())
    assert [len(part) for part in box.split(1)] == [1, 1]


def test_boxes_that_are_none() -> None:
    zeros = torch.zeros(1, 1, 2, 2)
    for lower, upper in ((zeros, zeros - 1), (zeros, zeros + torch.inf), (zeros, zeros[:, :, :1])):
        with pytest.raises(CertoodError, match="expected"):
            Box(lower, upper)
