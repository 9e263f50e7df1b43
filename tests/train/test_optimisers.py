"""Every optimiser against its formula in NumPy, and every schedule against a list of learning rates."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from certood.train.optimisers import OPTIMISERS
from certood.train.optimisers.adam import Adam
from certood.train.optimisers.sgd import SGD
from certood.train.schedules import SCHEDULES, Schedule, scheduler
from certood.train.schedules.constant import Constant
from certood.train.schedules.cosine import Cosine
from certood.train.schedules.steps import Steps

START, GRADIENTS = 2.0, (0.5, -1.5, 0.25)


def sgd(learning_rate: float, momentum: float, nesterov: bool, weight_decay: float) -> float:
    weight, velocity = START, 0.0
    for gradient in GRADIENTS:
        slope = gradient + weight_decay * weight
        velocity = momentum * velocity + slope
        weight -= learning_rate * (slope + momentum * velocity if nesterov else velocity)
    return weight


def adam(learning_rate: float, weight_decay: float) -> float:
    weight, first, second = START, 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, 1):
        slope = gradient + weight_decay * weight
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        weight -= learning_rate * first / (1 - 0.9**step) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return weight


CASES: list[tuple[str, Any, float]] = [
    ("sgd", SGD(), sgd(0.1, 0.9, True, 5e-4)),
    ("sgd", SGD(0.01, 0.5, False, 0.1), sgd(0.01, 0.5, False, 0.1)),
    ("sgd", SGD(0.01, 0.0, True, 0.0), sgd(0.01, 0.0, False, 0.0)),
    ("adam", Adam(), adam(1e-3, 5e-4)),
    ("adam", Adam(0.05, 0.2), adam(0.05, 0.2)),
]


def test_every_member_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(OPTIMISERS.names())
    assert {type(schedule) for schedule, *_ in RATES} == {SCHEDULES.find(name) for name in SCHEDULES.names()}


@pytest.mark.parametrize(("name", "optimiser", "expected"), CASES)
def test_three_steps_are_those_of_the_formula(name: str, optimiser: Any, expected: float) -> None:
    assert type(optimiser) is OPTIMISERS.find(name)
    weight = nn.Parameter(torch.tensor(START, dtype=torch.float64))
    made = optimiser([{"params": [weight]}])
    for gradient in GRADIENTS:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        made.step()
    assert weight.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", OPTIMISERS.names())
def test_a_group_may_differ(name: str) -> None:
    first, second = (nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    made = OPTIMISERS.find(name)()([{"params": [first]}, {"params": [second], "weight_decay": 0.0}])
    for weight in (first, second):
        weight.grad = torch.zeros(())
    made.step()
    assert first.item() < 1
    assert second.item() == 1


def cosine(steps: int) -> list[float]:
    return [(1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


# A schedule, steps of warm-up, and the learning rates of two epochs of four steps, as parts of the optimiser's.
RATES: list[tuple[Schedule, int, list[float]]] = [
    (Constant(), 0, [1.0] * 8),
    (Constant(), 3, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]),
    (Cosine(), 0, cosine(8)),
    (Cosine(decay_start=1.5), 0, [1.0] * 6 + cosine(2)),
    (Cosine(), 2, [1 / 3, 2 / 3, *cosine(6)]),
    (Cosine(final_learning_rate=0.01), 0, [0.1 + 0.9 * part for part in cosine(8)]),
    (Steps((1,), 0.5), 0, [1.0] * 4 + [0.5] * 4),
    (Steps((1, 1), 0.1), 5, [1 / 600, 2 / 600, 3 / 600, 4 / 600, 5 / 600, 0.01, 0.01, 0.01]),
]


@pytest.mark.parametrize(("schedule", "warmup", "expected"), RATES)
def test_learning_rates_are_those_of_the_list(schedule: Schedule, warmup: int, expected: list[float]) -> None:
    made = SGD(0.1)([{"params": [nn.Parameter(torch.zeros(()))]}, {"params": [nn.Parameter(torch.zeros(()))]}])
    rates = scheduler(schedule, made, warmup=warmup, steps=4, epochs=2)
    found = []
    for _ in range(8):
        found.append([group["lr"] for group in made.param_groups])
        made.step()
        rates.step()
    np.testing.assert_allclose(found, 0.1 * np.array(expected)[:, None].repeat(2, 1), rtol=1e-12)


def test_a_schedule_goes_on_from_its_state() -> None:
    def make() -> tuple[torch.optim.Optimizer, Any]:
        made = SGD(0.1)([{"params": [nn.Parameter(torch.zeros(()))]}])
        return made, scheduler(Cosine(decay_start=0.5), made, warmup=2, steps=4, epochs=2)

    (whole, rates), (cut, again) = make(), make()
    for step in range(7):
        if step == 4:
            cut.load_state_dict(whole.state_dict())
            again.load_state_dict(rates.state_dict())
        whole.step()
        rates.step()
        if step >= 4:
            cut.step()
            again.step()
    assert cut.param_groups[0]["lr"] == whole.param_groups[0]["lr"] < 0.1
