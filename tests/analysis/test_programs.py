"""Random programs are captured as they are, and neither samples nor attacks leave their bounds."""

import math

import pytest
import torch

from certood.analysis.bounds import LpBall, bound, capture
from tests.analysis.networks import Together, attacked, failing, sampled
from tests.analysis.programs import STEPS, Program
from tests.quick import every_is_quick

SHAPE = (2, 4, 4)


@pytest.mark.parametrize("seed", every_is_quick(5, range(15)))
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


GROUPS = [list(STEPS)[start : start + 6] for start in range(0, len(STEPS), 6)]


@pytest.mark.slow
@pytest.mark.parametrize("names", GROUPS, ids=" + ".join)
def test_every_step_by_itself(names: list[str]) -> None:
    """Around the values where functions bend: the same without other steps that could hide an error."""
    seeds = [next(seed for seed in range(5000) if Program(seed, SHAPE, 1).names == [name]) for name in names]
    model = Together(Program(seed, SHAPE, 1) for seed in seeds)
    x = torch.rand(1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph = capture(model, x)
    for eps in (0.01, 0.5):
        values = model(sampled(x, eps, math.inf, 400).flatten(0, 1)).view(400, 1, -1)
        for method in ("interval", "crown"):
            bounds = bound(graph, LpBall(x, eps), method)
            assert not failing(names, bounds.lower <= values.amin(0) + 1e-9), (eps, method)
            assert not failing(names, bounds.upper >= values.amax(0) - 1e-9), (eps, method)
