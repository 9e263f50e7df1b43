"""Random programs are captured as they are, and neither samples nor attacks leave their bounds."""

import math

import pytest
import torch

from certood.analysis.bounds import LpBall, bound, capture
from tests.analysis.networks import attacked, sampled
from tests.analysis.programs import STEPS, Program

SHAPE = (2, 4, 4)


@pytest.mark.parametrize("seed", range(24))
def test_nothing_leaves_the_bounds_of_a_random_program(seed: int) -> None:
    model = Program(seed, SHAPE, length=2 + seed % 4)
    x = torch.rand(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    graph = capture(model, x)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-9, atol=1e-12)
    norm = (math.inf, 2, 1)[seed % 3]
    eps = 0.02 if norm == math.inf else 0.1
    values = model(sampled(x, eps, norm, 200).flatten(0, 1)).view(200, len(x), 3)
    highest, lowest = attacked(model, x, eps, norm), -attacked(lambda y: -model(y), x, eps, norm)
    for method, dtype in (("interval", torch.float64), ("crown", torch.float64), ("crown", torch.float32)):
        found = bound(graph, LpBall(x, eps, norm), method, dtype=dtype)
        assert (found.lower <= torch.minimum(values.amin(0), lowest) + 1e-9).all(), (model.names, method, dtype)
        assert (found.upper >= torch.maximum(values.amax(0), highest) - 1e-9).all(), (model.names, method, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_every_step_by_itself(name: str) -> None:
    """Around the values where functions bend: the same without other steps that could hide an error."""
    found = next((seed for seed in range(5000) if Program(seed, SHAPE, 1).names == [name]), None)
    assert found is not None
    model = Program(found, SHAPE, 1)
    x = torch.rand(1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph = capture(model, x)
    for eps in (0.01, 0.5):
        values = model(sampled(x, eps, math.inf, 400).flatten(0, 1)).view(400, 1, 3)
        for method in ("interval", "crown"):
            bounds = bound(graph, LpBall(x, eps), method)
            assert (bounds.lower <= values.amin(0) + 1e-9).all()
            assert (bounds.upper >= values.amax(0) - 1e-9).all()
