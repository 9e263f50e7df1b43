"""What every engine promises: bounds that no sample leaves, one meaning of rows and constants, and honest properties."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

import certood
from certood.analysis.bounds import ENGINES, Analysis, Engine, LpBall, engine_by_name
from certood.analysis.settings import Settings
from certood.errors import CannotCertify, CertoodError
from tests.analysis.networks import NORMS, RADII, captured, images, sampled

METHODS = ("interval", "crown-ibp", "crown", "alpha-crown")
CASES = [
    pytest.param(
        engine,
        marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed"),
    )
    for engine, package in zip(ENGINES.values(), ("torch", "auto_LiRPA"), strict=True)
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", CASES)
def test_no_sample_leaves_the_bounds_of_rows(engine: Engine, method: str) -> None:
    graph, x, count = captured("mlp", trained=True), images(), 2
    model = graph.module
    engine.require()
    rows, constant = torch.randn(count, 5, 4).double(), torch.randn(count, 5).double()
    for norm in engine.norms:
        ball = LpBall(x, RADII[norm], norm)
        analysis = engine.analyse(graph, ball, method, iterations=2)
        values = model(sampled(x, RADII[norm], norm, 500).flatten(0, 1)).view(500, count, 4).detach()
        asked = torch.einsum("nmk,snk->snm", rows, values) + constant
        found = analysis.rows(rows, constant)
        # α-CROWN of auto_LiRPA computes in float32.
        hair = 1e-5 if engine.name != "certood" else 1e-12
        assert (found.lower <= asked.amin(0) + hair).all()
        assert (found.upper >= asked.amax(0) - hair).all()
        assert (found.width < 200 * (asked.amax(0) - asked.amin(0))).all()
        plain = analysis.rows(rows)
        torch.testing.assert_close(plain.lower + constant, found.lower, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(plain.upper + constant, found.upper, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(analysis.lower_rows(rows), plain.lower, rtol=1e-6, atol=1e-6)
        assert analysis.method
        assert analysis.ball is ball
        assert analysis.graph is graph


@pytest.mark.parametrize("engine", CASES)
def test_properties_say_what_is_refused(engine: Engine) -> None:
    graph = captured("mlp")
    for norm in NORMS:
        if norm in engine.norms:
            engine.check_norm(norm)
            continue
        with pytest.raises(CertoodError, match=f"the engine {engine.name} bounds l_inf balls only, not l_{norm:g}"):
            Settings(norm=norm, engine=engine.name)
        with pytest.raises(CannotCertify):
            engine.analyse(graph, LpBall(images(), 0.1, norm), "crown")
    with pytest.raises(CertoodError, match="unknown method 'beta-crown'"):
        engine.analyse(graph, LpBall(images(), 0.1), "beta-crown")
    found = engine.analyse(graph, LpBall(images(), 0.01), "crown")
    assert engine.linear == isinstance(found, Analysis)
    if not engine.linear:
        with pytest.raises(CertoodError, match="expected parts >= 0, and 0 with the engine"):
            Settings(norm=math.inf, engine=engine.name, parts=4)


def test_engines_are_known_by_name() -> None:
    assert all(engine_by_name(name) is engine and engine.name == name for name, engine in ENGINES.items())
    with pytest.raises(CertoodError, match="unknown engine 'lirpa'; expected certood or auto-lirpa"):
        engine_by_name("lirpa")


def test_the_name_of_a_second_engine_stands_in_one_file() -> None:
    (root,) = certood.__path__
    named = {path for path in Path(root).rglob("*.py") if '"auto-lirpa"' in path.read_text("utf-8")}
    followed = {path for folder in ("analysis", "train") for path in (Path(root) / folder).resolve().rglob("*.py")}
    named |= {path for path in followed if '"auto-lirpa"' in path.read_text("utf-8")}
    assert {path.name for path in named} == {"auto_lirpa.py"}
