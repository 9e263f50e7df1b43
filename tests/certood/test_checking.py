"""The checker: bounds against exact rationals, scores against mpmath, the file against onnxruntime, and changed digits."""

import hashlib
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as F

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from certood.checking.certificates import Damaged, Decision, read_certificate  # noqa: E402
from certood.checking.folder import check_folder  # noqa: E402
from certood.checking.linear_bounds import Ball, LinearBounds, fills_some_ball  # noqa: E402
from certood.checking.network import Network, Placed  # noqa: E402
from certood.checking.network_file import read_network  # noqa: E402
from certood.checking.operators.layers import OF_A_ROOT, convolution_matrix  # noqa: E402
from certood.checking.properties import _suffices  # noqa: E402
from certood.checking.reading import Unchecked  # noqa: E402
from certood.checking.scores import _chord_rows, accepted_margin, rejected_margin  # noqa: E402
from certood.checking.steps import Array, Join, Linear, Relu, Scale, Select, Shift, Sum  # noqa: E402
from certood.claims.properties import Case, Counterexamples, Property  # noqa: E402
from certood.claims.vnnlib import vnnlib_1, vnnlib_2  # noqa: E402
from certood.claims.vnnlib_reading import read_vnnlib  # noqa: E402
from certood.cli import main  # noqa: E402
from certood.rounding import box_within  # noqa: E402
from tests.certood.exported_claims import (  # noqa: E402
    SHAPE,
    certificate,
    half_slopes,
    random_model,
    rehash,
    with_energy,
    write_export,
    write_network,
)

ROOT = Path(__file__).parents[2]
mpmath.mp.dps = 60


def check(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["check", str(folder), *options])


# ---- bounds


@pytest.mark.parametrize(("norm", "share"), [(math.inf, 1.0), (2.0, 9**-0.5), (1.0, 1 / 9)])
def test_a_box_is_inside_a_ball_where_its_corners_are(norm: float, share: float) -> None:
    centre, radius = np.full(9, 0.5), 0.25
    ball = Ball(centre, radius, norm)
    for factor in (0.999, 1.001):
        half = factor * share * radius
        corner = float(np.linalg.norm(np.full(9, half), norm))
        assert ball.holds(centre - half, centre + half) is (corner <= radius)
        # A box need not be in the middle: its furthest corner decides.
        assert ball.holds(centre - half, centre) is (corner <= radius)
        assert ball.holds(centre, centre + half) is (corner <= radius)
    assert Ball(np.zeros(9), radius, norm).holds(np.zeros(9), np.zeros(9))
    assert not Ball(np.zeros(9), radius, norm).holds(np.full(9, -1e-9), np.zeros(9))
    assert not Ball(np.ones(9), radius, norm).holds(np.ones(9), np.full(9, 1 + 1e-9))


Exact = list[list[Fraction]]


def dot(row: Sequence[Fraction], column: Sequence[Fraction]) -> Fraction:
    return sum((one * other for one, other in zip(row, column, strict=True)), Fraction())


def exactly(values: Array) -> Any:
    return [exactly(part) for part in values] if values.ndim else Fraction(float(values))


class ExactBounds:
    """The same bounds of a chain of linear layers with ReLU between them, in rationals."""

    def __init__(
        self, layers: list[tuple[Exact, list[Fraction]]], box: list[tuple[Fraction, Fraction]], slope: Fraction
    ) -> None:
        self.layers, self.box, self.slope = layers, box, slope
        self.before: list[list[tuple[Fraction, Fraction]]] = []
        entered = box
        for index, (weight, bias) in enumerate(layers[:-1]):
            found = []
            for place, (row, shift) in enumerate(zip(weight, bias, strict=True)):
                ends = [[factor * end for end in pair] for factor, pair in zip(row, entered, strict=True)]
                low, high = (shift + sum(map(pick, ends), Fraction()) for pick in (min, max))
                if low < 0 < high:
                    unit = [Fraction(int(place == other)) for other in range(len(weight))]
                    low = max(low, self.lower(unit, index))
                    high = min(high, -self.lower([-value for value in unit], index))
                found.append((low, high))
            self.before.append(found)
            entered = [(max(low, Fraction()), max(high, Fraction())) for low, high in found]

    def lower(self, row: list[Fraction], index: int | None = None) -> Fraction:
        last = len(self.layers) - 1 if index is None else index
        constant = Fraction()
        for place in range(last, -1, -1):
            weight, bias = self.layers[place]
            constant += dot(row, bias)
            row = [dot(row, column) for column in zip(*weight, strict=True)]
            if place:
                bounds = self.before[place - 1]
                back = []
                for factor, (low, high) in zip(row, bounds, strict=True):
                    if low >= 0 or high <= 0:
                        back.append(factor if low >= 0 else Fraction())
                    elif factor >= 0:
                        back.append(factor * self.slope)
                    else:
                        back.append(factor * high / (high - low))
                        constant -= factor * high / (high - low) * low
                row = back
        return constant + sum(
            (min(factor * low, factor * high) for factor, (low, high) in zip(row, self.box, strict=True)), Fraction()
        )


def chain(seed: int, sizes: Sequence[int]) -> tuple[Network, list[tuple[Exact, list[Fraction]]]]:
    random = np.random.default_rng(seed)
    network, layers = Network((1, 1, sizes[0]), outputs=sizes[-1]), []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weight, bias = (
            random.standard_normal(shape).astype(np.float32).astype(float) for shape in ((outputs, inputs), (outputs,))
        )
        if index:
            network.steps.append(Placed(f"relu{index}", Relu(), (len(network.steps),)))
        network.steps.append(Placed(f"linear{index}", Linear(weight, bias), (len(network.steps),)))
        layers.append((exactly(weight), exactly(bias)))
    return network, layers


@pytest.mark.parametrize("slope", [0.0, 0.375, 1.0])
@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_bounds_are_just_below_those_of_exact_rationals(slope: float, radius: float) -> None:
    for seed in range(4):
        network, layers = chain(seed, (4, 6, 5, 3))
        centre = np.random.default_rng(seed + 100).random(4)
        ball = Ball(centre, radius, math.inf)
        box = [
            (max(Fraction(x) - Fraction(radius), Fraction()), min(Fraction(x) + Fraction(radius), Fraction(1)))
            for x in centre.tolist()
        ]
        exact = ExactBounds(layers, box, Fraction(slope))
        bounds = LinearBounds(
            network, ball, half_slopes(network) | {f"relu{i}": (slope,) * n for i, n in ((1, 6), (2, 5))}
        )
        rows = np.concatenate([np.eye(3), -np.eye(3), [[0.5, 0.25, 0.25]]])
        for row, found in zip(rows, bounds.lower(rows).tolist(), strict=True):
            true = exact.lower([Fraction(value) for value in row.tolist()])
            assert 0 < float(true - Fraction(found)) < 1e-11 * (1 + abs(found))
            assert Fraction(found) < true


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_no_point_of_a_ball_leaves_the_bounds(tmp_path: Path, norm: float) -> None:
    network = write_network(tmp_path / "network.onnx")
    random = np.random.default_rng(0)
    for radius in (0.01, 0.1):
        centre = random.random(math.prod(SHAPE))
        ball = Ball(centre, radius * {math.inf: 1, 2.0: 3, 1.0: 10}[norm], norm)
        bounds = LinearBounds(network, ball, half_slopes(network))
        rows = np.concatenate([np.eye(3), -np.eye(3)])
        lower = bounds.lower(rows)
        found = []
        for _ in range(300):
            change = random.standard_normal(len(centre)) * (random.random(len(centre)) < random.random())
            change = np.sign(change) if norm == math.inf else change
            size = np.linalg.norm(change, norm) or 1.0
            found.append(rows @ network.value(np.clip(centre + change * ball.radius / size, 0, 1)))
        assert (np.min(found, 0) >= lower - 1e-12).all()
        # At the smaller radius the network is nearly linear, and the bounds are near what was sampled.
        if radius == 0.01:
            assert (np.min(found, 0) - lower < 2 * np.ptp(found, 0)).all()


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_the_least_value_over_a_ball_is_that_of_the_dual_norm(norm: float) -> None:
    random = np.random.default_rng(0)
    centre, rows = random.uniform(0.3, 0.7, 6), random.standard_normal((20, 6))
    for row, found in zip(rows, Ball(centre, 0.1, norm).least(rows).tolist(), strict=True):
        exact = [mpmath.mpf(value) for value in row.tolist()]
        size = {math.inf: sum(map(abs, exact)), 2.0: mpmath.sqrt(sum(x * x for x in exact)), 1.0: max(map(abs, exact))}[
            norm
        ]
        true = sum(x * mpmath.mpf(c) for x, c in zip(exact, centre.tolist(), strict=True)) - mpmath.mpf(0.1) * size
        assert 0 < true - mpmath.mpf(found) < 1e-13
    # Pixels end at 0: for an image of zeros nothing falls.
    assert -1e-290 < float(Ball(np.zeros(2), 0.1, norm).least(np.ones((1, 2)))[0]) <= 0


def test_the_size_of_logits_is_that_of_what_they_are_sums_of() -> None:
    """From the last ReLU on: |w|·h + |b| of a linear layer, through a change of sign and a shift as well."""
    random = np.random.default_rng(0)
    weight, bias, image = random.standard_normal((3, 4)), random.standard_normal(3), random.random(4)
    network = Network(
        (1, 1, 4), [Placed("relu", Relu(), (0,)), Placed("linear", Linear(weight, bias), (1,))], outputs=3
    )
    expected = (np.abs(weight) @ image + np.abs(bias)).max()
    assert network.size(network.values(image)) == pytest.approx(expected)
    network.steps += [Placed("sign", Scale(np.full(3, -2.0)), (2,)), Placed("shift", Shift(np.full(3, 0.5)), (3,))]
    assert network.size(network.values(image)) == pytest.approx(2 * expected + 0.5)
    # What lies before a ReLU, or before a branch, does not count.
    network.steps.append(Placed("last", Relu(), (4,)))
    assert network.size(network.values(image)) == np.abs(network.value(image)).max()
    network.steps[-1] = Placed("sum", Sum(), (4, 4))
    assert network.size(network.values(image)) == np.abs(network.value(image)).max()


KINDS = ("scale", "divide", "doubtful", "doubtful divisor", "shift", "sum", "join", "select", "relu", "linear")


@given(st.integers(0, 10**6), st.sampled_from(KINDS))
@settings(max_examples=100)
def test_every_step_keeps_its_promise(seed: int, kind: str) -> None:
    """Boxes and rows of a step, against exact values at points of the boxes of its inputs."""
    random = np.random.default_rng(seed)
    size = 4
    factor = random.standard_normal(size)
    step = {
        "scale": Scale(factor),
        "divide": Scale(factor, divide=True),
        "doubtful": Scale(factor, doubt=1e-3),
        "doubtful divisor": Scale(factor, divide=True, doubt=1e-3),
        "shift": Shift(factor),
        "sum": Sum(),
        "join": Join(),
        "select": Select(np.array([2, -1, 0, 3])),
        "relu": Relu(),
        "linear": Linear(random.standard_normal((3, size)), random.standard_normal(3)),
    }[kind]
    boxes = []
    for _ in range(2 if kind in ("sum", "join") else 1):
        ends = np.sort(random.standard_normal((2, size)), 0)
        boxes.append(type(Ball(np.zeros(1), 0.0, math.inf).box)(ends[0], ends[1]))
    outputs = {"linear": 3, "join": 2 * size}.get(kind, size)
    rows = random.standard_normal((5, outputs))
    parts, constants = step.back(rows, boxes, random.random(size))
    box = step.box(boxes)
    for _ in range(10):
        points = [np.where(random.random(size) < 0.3, one.lower, random.uniform(one.lower, one.upper)) for one in boxes]
        x = [exactly(point) for point in points]
        scale = exactly(factor)
        off = 1 + Fraction(random.choice([-1e-3, 1e-3, random.uniform(-1e-3, 1e-3)]))
        y = {
            "scale": lambda x=x, s=scale: [a * b for a, b in zip(x[0], s, strict=True)],
            "divide": lambda x=x, s=scale: [a / b for a, b in zip(x[0], s, strict=True)],
            "shift": lambda x=x, s=scale: [a + b for a, b in zip(x[0], s, strict=True)],
            "doubtful": lambda x=x, s=scale, off=off: [a * b * off for a, b in zip(x[0], s, strict=True)],
            "doubtful divisor": lambda x=x, s=scale, off=off: [a / b / off for a, b in zip(x[0], s, strict=True)],
            "sum": lambda x=x: [a + b for a, b in zip(*x, strict=True)],
            "join": lambda x=x: [*x[0], *x[1]],
            "select": lambda x=x: [x[0][2], Fraction(), x[0][0], x[0][3]],
            "relu": lambda x=x: [max(a, Fraction()) for a in x[0]],
            "linear": lambda x=x: [
                dot(row, x[0]) + shift
                for row, shift in zip(exactly(step.weight), exactly(step.bias), strict=True)  # type: ignore[attr-defined]
            ],
        }[kind]()
        assert all(
            Fraction(low) <= value <= Fraction(high)
            for low, value, high in zip(
                *map(exactly_list, (box.lower,)), y, *map(exactly_list, (box.upper,)), strict=True
            )
        )
        close = 2e-3 if kind.startswith("doubtful") else 1e-12
        np.testing.assert_allclose(step.value(points), [float(value) for value in y], rtol=close, atol=1e-12)
        for number, row in enumerate(exactly(rows)):
            below = sum(
                (dot(exactly(part[number]), point) for part, point in zip(parts, x, strict=True)),
                Fraction(float(constants[number])),
            )
            assert below <= dot(row, y)


def exactly_list(values: Array) -> list[Fraction]:
    return [Fraction(value) for value in values.tolist()]


def test_roots_are_within_their_doubt() -> None:
    random = np.random.default_rng(0)
    for variance, epsilon in np.float32(10 ** random.uniform(-6, 3, (400, 2))).astype(float).tolist():
        true = mpmath.sqrt(mpmath.mpf(variance) + mpmath.mpf(epsilon))
        assert abs(mpmath.mpf(math.sqrt(variance + epsilon)) / true - 1) < OF_A_ROOT
    assert OF_A_ROOT < 1e-15


def test_a_place_is_selected_once() -> None:
    for index in ([0, 1, 0], [0, -2]):
        with pytest.raises(ValueError, match="place"):
            Select(np.array(index))
    Select(np.array([-1, 0, -1]))


def test_slopes_must_be_there_and_in_their_range(tmp_path: Path) -> None:
    network = write_network(tmp_path / "network.onnx")
    ball, slopes = Ball(np.full(math.prod(SHAPE), 0.5), 0.1, math.inf), half_slopes(network)
    for changed in (
        {"first": (0.5,) * 23},
        {"first": ()},
        {"second": (0.5,) * 23 + (1.0000001,)},
        {"second": (math.nan,) * 24},
    ):
        with pytest.raises(ValueError, match="slope"):
            LinearBounds(network, ball, slopes | changed).lower(np.eye(3))


# ---- scores


class Boxed:
    """Lower bounds of rows of logits in a box, as linear bounds would have them."""

    def __init__(self, lower: Sequence[float], upper: Sequence[float]) -> None:
        self.ends = np.array(lower), np.array(upper)

    def __call__(self, rows: Array) -> Array:
        low, high = self.ends
        return np.nextafter(np.maximum(rows, 0) @ low + np.minimum(rows, 0) @ high, -np.inf) - 1e-12


def true_score(logits: Sequence[float], temperature: float) -> mpmath.mpf:
    if not temperature:
        return -mpmath.mpf(max(logits))
    scale = mpmath.mpf(temperature)
    return -scale * mpmath.log(sum(mpmath.exp(mpmath.mpf(value) / scale) for value in logits))


@given(
    st.lists(st.tuples(st.floats(-30, 30), st.floats(0, 4)), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.01, 0.5, 1.0, 7.0]),
    st.floats(-20, 20),
    st.lists(st.integers(0, 1000), min_size=5, max_size=5),
)
def test_margins_of_scores_are_below_the_least_on_a_box(
    box: list[tuple[float, float]], temperature: float, threshold: float, counts: list[int]
) -> None:
    lower, upper = [low for low, _ in box], [low + width for low, width in box]
    bounds, size = Boxed(lower, upper), len(box)
    # The score falls in every logit: its ends on a box are at two corners.
    least, largest = true_score(upper, temperature), true_score(lower, temperature)
    rejected = rejected_margin(bounds, bounds, size, size, threshold, temperature)
    assert mpmath.mpf(rejected.numerator) / rejected.denominator <= least - threshold
    assert float(least - threshold) - float(rejected) < 1e-6 * (1 + abs(float(least)) + abs(threshold))
    weights = [count / 1024 for count in counts[: size - 1]]
    if sum(weights) <= 1:
        weights.append(1 - sum(weights))
        accepted = accepted_margin(bounds, size, weights, threshold, temperature)
        assert mpmath.mpf(accepted.numerator) / accepted.denominator <= threshold - largest


def test_an_accepted_margin_is_that_of_the_tangent() -> None:
    logits = [1.0, 2.0, 0.5]
    shares = np.exp(logits) / np.exp(logits).sum()
    weights = [round(share * 2**30) / 2**30 for share in shares[:2]]
    weights.append(1 - sum(weights))
    found = accepted_margin(Boxed(logits, logits), 3, weights, 0.25, 1.0)
    assert float(found) == pytest.approx(0.25 - float(true_score(logits, 1.0)), abs=1e-9)
    for wrong in ([0.5, 0.5, 0.1], [1.5, -0.5, 0.0], [*weights[:2], weights[2] + 2**-50]):
        with pytest.raises(ValueError, match="sum to one"):
            accepted_margin(Boxed(logits, logits), 3, wrong, 0.25, 1.0)


@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0, None]))
@settings(max_examples=60)
def test_chord_rows_are_above_logsumexp(seed: int, temperature: float, top: int | None) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(2, 5))
    lowest = random.uniform(-6, 2, size)
    highest = lowest + random.choice([0.0, 0.1, 2.0, 6.0], size)
    if top is not None:
        lowest[top] = highest[top] = 0.0
    rows = list(_chord_rows(lowest, highest, np.eye(size), top, Fraction(20), temperature))
    gaps = []
    for _ in range(8):
        ends = random.random(size)
        difference = np.where(ends < 0.4, lowest, np.where(ends > 0.6, highest, random.uniform(lowest, highest)))
        logits = (0.0 if top is None else random.uniform(-20, 20)) + difference
        # The difference as it is after rounding, which may be out of its interval by that much.
        for row, constant in rows:
            above = sum(mpmath.mpf(r) * mpmath.mpf(z) for r, z in zip(row.tolist(), logits.tolist(), strict=True))
            gaps.append(
                float(
                    above
                    + mpmath.mpf(constant.numerator) / constant.denominator
                    + true_score(logits.tolist(), temperature)
                )
            )
    assert min(gaps) > -1e-13
    if (highest == lowest).all():
        assert min(gaps) < 1e-12


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 0.004])
def test_logits_that_are_many_temperatures_apart(temperature: float) -> None:
    """Exponentials of their differences are beyond float64, or even beyond decimals; the largest logit is as good."""
    bounds = Boxed([-3.0, -3.0, -3.0], [3.0, 3.0, 3.0])
    found = rejected_margin(bounds, bounds, 3, 3, -4.0, temperature)
    assert 0 <= float(1 - Fraction(temperature) * Fraction(math.log(3)) - found) < 1e-9

    def unbounded(rows: Array) -> Array:
        return np.where(np.abs(rows).sum(1) > 1, -np.inf, -3.0)

    # Differences that nothing is known of leave the bounds of the logits.
    assert float(1 - rejected_margin(unbounded, unbounded, 3, 3, -4.0, 1.0)) == pytest.approx(math.log(3))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_chords_of_differences_are_tighter_than_the_box_and_sound(temperature: float) -> None:
    """Logits that move together: the box of each is wide, that of their differences is narrow."""
    base, reach = np.array([2.0, 1.5, 1.0]), 3.0

    def lower(rows: Array) -> Array:
        # f = base + t·(1, 1, 1) + s·(1, −1, 0), |t| ≤ 3, |s| ≤ 0.3.
        return rows @ base - reach * np.abs(rows.sum(1)) - 0.3 * np.abs(rows[:, 0] - rows[:, 1]) - 1e-12

    found = rejected_margin(lower, lower, 3, 3, -20.0, temperature)
    points = [base + t + s * np.array([1, -1, 0]) for t in (-3, 3) for s in np.linspace(-0.3, 0.3, 61)]
    least = min(float(true_score(point.tolist(), temperature)) for point in points)
    assert float(found) <= least + 20
    assert float(found) > least + 20 - 0.12


# ---- reading the file


def test_the_network_is_read_as_onnxruntime_evaluates_it(tmp_path: Path) -> None:
    network = write_network(tmp_path / "network.onnx", seed=3)
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    for image in np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32):
        expected = session.run(None, {"X": image[None]})[0][0]
        np.testing.assert_allclose(network.value(image.astype(float)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [((1, 1), (0, 0), (1, 1)), ((2, 3), (1, 2), (2, 1))])
def test_the_matrix_of_a_convolution(
    groups: int, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(4, 4 // groups, 2, 3, generator=generator, dtype=torch.float64)
    images = torch.randn(3, 4, 6, 7, generator=generator, dtype=torch.float64)
    matrix, plane = convolution_matrix(kernel.numpy(), (4, 6, 7), stride, (*padding, *padding), dilation, groups)
    expected = F.conv2d(images, kernel, None, stride, padding, dilation, groups)
    assert expected.shape[2:] == plane
    np.testing.assert_allclose(images.flatten(1).numpy() @ matrix.T, expected.flatten(1).numpy(), atol=1e-12)


def test_a_window_that_lies_mostly_in_the_padding_is_counted_once_a_pixel() -> None:
    """As many places as there are pixels, not as the window has."""
    matrix, plane = convolution_matrix(
        np.broadcast_to(np.ones(1), (1, 1, 10**6 + 1, 1)), (1, 3, 2), (1, 1), (500_000, 0, 500_000, 0), (1, 1), 1
    )
    assert plane == (3, 2)
    np.testing.assert_array_equal(matrix, np.kron(np.ones((3, 3)), np.eye(2)))


def test_other_operators_and_large_layers_are_refused_by_name(tmp_path: Path) -> None:
    write_network(tmp_path / "network.onnx")
    model = onnx.load(tmp_path / "network.onnx")
    model.graph.node[3].op_type = "Sigmoid"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(Unchecked, match="not Sigmoid"):
        read_network(tmp_path / "other.onnx")
    with pytest.raises(Unchecked, match="too large"):
        convolution_matrix(np.zeros((64, 64, 3, 3)), (64, 32, 32), (1, 1), (1, 1, 1, 1), (1, 1), 1)


# ---- a whole export


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_export(tmp_path / "claims")
    return tmp_path / "claims"


def test_a_whole_export_is_checked_without_torch_and_without_our_bounds(folder: Path) -> None:
    code = (
        "import sys\nfrom certood.cli import main\n"
        f"main(['check', {str(folder)!r}], standalone_mode=False)\n"
        "print(sorted(name for name in sys.modules if name.startswith(('torch', 'certood.analysis', 'certood.train'))))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "certificates: 2 of 2 hold" in run.stdout
    assert "sampled: 16 images" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"
    assert all(len(line) <= 80 for line in run.stdout.splitlines())
    for file in (ROOT / "certood" / "checking").rglob("*.py"):
        assert not re.search(
            r"^\s*(from|import) (torch|certood\.(analysis|train|scores|onnx))", file.read_text(), re.MULTILINE
        )


def certificates(folder: Path) -> list[Path]:
    return sorted((folder / "certificates").glob("*.json"))


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def more(values: Sequence[float], place: int, change: float) -> list[float]:
    return [value + change * (index == place) for index, value in enumerate(values)]


def content_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def of_decision(folder: Path, *, accepted: bool) -> Path:
    return next(path for path in certificates(folder) if content_of(path)["accepted"] is accepted)


def change_centre(folder: Path) -> None:
    path = certificates(folder)[0]
    edited(path, centre=more(content_of(path)["centre"], 3, 1e-4 if content_of(path)["centre"][3] < 0.5 else -1e-4))


def drop_a_pixel(folder: Path) -> None:
    path = certificates(folder)[0]
    edited(path, centre=content_of(path)["centre"][:-1])


def turn_the_images(folder: Path) -> None:
    content = content_of(folder / "claims.json")
    content["detector"]["input_shape"] = [2, 4, 5]
    edited(folder / "claims.json", **content)


def change_radius(folder: Path) -> None:
    edited(certificates(folder)[0], radius=0.0041)


def change_threshold(folder: Path) -> None:
    path = certificates(folder)[0]
    edited(path, threshold=content_of(path)["threshold"] + 1e-9)


def change_weights(folder: Path) -> None:
    path = of_decision(folder, accepted=True)
    edited(path, weights=more(content_of(path)["weights"], 0, 2.0**-20))


def change_decision(folder: Path) -> None:
    edited(of_decision(folder, accepted=False), accepted=True, weights=[1.0, 0.0, 0.0])


def change_slopes(folder: Path) -> None:
    path = certificates(folder)[0]
    edited(path, slopes={name: more(values, 0, 0.75) for name, values in content_of(path)["slopes"].items()})


def change_network(folder: Path) -> None:
    path = folder / "conditions" / "network.onnx"
    content = path.read_bytes()
    weights = next(tensor.raw_data for tensor in onnx.load(path).graph.initializer if tensor.name == "k1")
    # The last bit of the first weight.
    path.write_bytes(content.replace(weights, bytes([weights[0] ^ 1]) + weights[1:]))


def change_claim(folder: Path) -> None:
    content = content_of(folder / "claims.json")
    content["claims"][0]["eps"] = 0.04
    (folder / "claims.json").write_text(json.dumps(content))


def change_all_thresholds(folder: Path) -> None:
    content = content_of(folder / "claims.json")
    content["detector"]["threshold"] -= 100
    (folder / "claims.json").write_text(json.dumps(content))
    for path in certificates(folder):
        edited(path, threshold=content["detector"]["threshold"])


def change_all_radii(folder: Path, radius: float = 0.9) -> None:
    content = content_of(folder / "claims.json")
    for claim in content["claims"]:
        claim["eps"] = radius
    (folder / "claims.json").write_text(json.dumps(content))
    for path in certificates(folder):
        edited(path, radius=radius)


def change_box(folder: Path) -> None:
    path = next((folder / "scores" / "vnnlib-1.0").iterdir())
    path.write_text(re.sub(r"\(assert \(<= X_2 0\.\d", "(assert (<= X_2 0.99", path.read_text()))


def change_property(folder: Path) -> None:
    path = next((folder / "scores" / "vnnlib-1.0").iterdir())
    path.write_text(re.sub(r"Y_0 -?\d", "Y_0 -9", path.read_text()))


def property_of(folder: Path, kind: str, version: str, *, accepted: bool) -> Path:
    return folder / kind / f"vnnlib-{version}" / f"{of_decision(folder, accepted=accepted).stem}.vnnlib"


def replaced(path: Path, pattern: str, by: str) -> None:
    path.write_text(re.sub(pattern, by, path.read_text()))


def empty_second_version(folder: Path) -> None:
    property_of(folder, "scores", "2.0", accepted=True).write_text("")


def turn_second_version(folder: Path) -> None:
    replaced(property_of(folder, "conditions", "2.0", accepted=True), r"\(assert \(<= \(\+", "(assert (>= (+")


def change_second_box(folder: Path) -> None:
    replaced(property_of(folder, "conditions", "2.0", accepted=False), r"<= X\[0,0,0,2\] 0\.\d", "<= X[0,0,0,2] 0.99")


def drop_a_class(folder: Path) -> None:
    for version, name in (("1.0", "Y_1"), ("2.0", r"Y\[0,1\]")):
        replaced(property_of(folder, "conditions", version, accepted=False), rf"\n  \(and \(>= {name} [^)]*\)\)", "")


def weaken_a_class(folder: Path) -> None:
    for version, name in (("1.0", "Y_1"), ("2.0", r"Y\[0,1\]")):
        replaced(property_of(folder, "conditions", version, accepted=False), rf"(>= {name}) [^)]*\)", r"\1 1000.0)")


def weaken_the_tangent(folder: Path) -> None:
    for version in ("1.0", "2.0"):
        replaced(property_of(folder, "conditions", version, accepted=True), r"\) -?[\d.]+\)\)$", ") -1000.0))")


def change_tangent(folder: Path) -> None:
    for version in ("1.0", "2.0"):
        replaced(property_of(folder, "conditions", version, accepted=True), r"\(\* 0\.\d", "(* 0.0")


def make_strict(folder: Path) -> None:
    replaced(property_of(folder, "scores", "1.0", accepted=True), r"\(>= Y_0", "(> Y_0")


def shrink_the_box_of_a_class(folder: Path) -> None:
    limit_a_class(folder, ">=")


def repeat_the_box_in_a_class(folder: Path) -> None:
    limit_a_class(folder, "<=")


def limit_a_class(folder: Path, end: str) -> None:
    """Let the first pixel end at its lower (>=) or upper (<=) end in one alternative."""
    path = property_of(folder, "conditions", "1.0", accepted=False)
    replaced(path, r"\(and \(>= Y_1", f"(and (<= X_0 {first_pixel(path, end)}) (>= Y_1")


def first_pixel(path: Path, end: str) -> str:
    """Its lower (>=) or upper (<=) end."""
    (found,) = re.findall(rf"\({end} X_0 ([^)]*)\)", path.read_text())
    return str(found)


def shrink_the_box_to_its_centre(folder: Path) -> None:
    image = np.array(content_of(of_decision(folder, accepted=True))["centre"], dtype=np.float32).reshape(1, *SHAPE)
    rewrite(folder, image, image)


def shrink_a_side_of_the_box(folder: Path) -> None:
    """By a thousandth."""
    content = content_of(of_decision(folder, accepted=True))
    image = np.array(content["centre"], dtype=np.float32).reshape(SHAPE)
    lower, upper = box_within(image, content["radius"])
    upper[1, 2, 3] -= np.float32(content["radius"] / 1000)
    rewrite(folder, lower[None], upper[None])


def rewrite(folder: Path, lower: NDArray[np.float32], upper: NDArray[np.float32]) -> None:
    """Give the accepted image's property of scores another box, in both versions."""
    path = property_of(folder, "scores", "1.0", accepted=True)
    (case,) = read_vnnlib(path.read_text(), path.name).cases
    changed = Counterexamples(lower, upper, (((float(case.rows[0, 0]),), float(case.bounds[0])),))
    path.write_text(vnnlib_1(changed))
    property_of(folder, "scores", "2.0", accepted=True).write_text(vnnlib_2(changed))


def hide_a_class(folder: Path) -> None:
    """In what is a comment to readers that end lines at \\n alone, in the version that is compared as a text."""
    path = property_of(folder, "conditions", "2.0", accepted=False)
    path.write_bytes(path.read_bytes().replace(b"  (and (>= Y[0,1]", b"; a comment\x0c  (and (>= Y[0,1]"))


def hide_a_class_of_both(folder: Path) -> None:
    for version, name in (("1.0", b"Y_1"), ("2.0", b"Y[0,1]")):
        path = property_of(folder, "conditions", version, accepted=False)
        path.write_bytes(path.read_bytes().replace(b"  (and (>= " + name, b"; a comment\r  (and (>= " + name))


def join_instances(folder: Path) -> None:
    path = folder / "conditions" / "instances.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\x0b", 1))


def say_nonsense_for_seconds(folder: Path) -> None:
    replaced(folder / "scores" / "instances.csv", ",300", ",soon")


def empty_the_box(folder: Path) -> None:
    """By a lower end above the upper one."""
    path = property_of(folder, "scores", "1.0", accepted=True)
    replaced(path, r"\(>= X_0 [^)]*\)", f"(>= X_0 {float(first_pixel(path, '<=')) + 1e-4:.6f})")


def nest_deeply(folder: Path) -> None:
    path = property_of(folder, "scores", "1.0", accepted=True)
    path.write_text(path.read_text() + 5000 * "(" + 5000 * ")")


def multiply_cases(folder: Path) -> None:
    """Forty alternatives twice are 1,600, each with a box of its own."""
    path = property_of(folder, "conditions", "1.0", accepted=False)
    path.write_text(path.read_text() + 2 * f"(assert (or {40 * '(>= Y_0 1.0) '}))\n")


def add_slopes_of_nothing(folder: Path) -> None:
    path = certificates(folder)[0]
    edited(path, slopes=content_of(path)["slopes"] | {"nothing": [0.5]})


def add_last_slopes_of_nothing(folder: Path) -> None:
    edited(certificates(folder)[0], last_slopes={"nothing": [0.5]})


def change_last_slopes(folder: Path) -> None:
    edited(certificates(folder)[0], last_slopes={"first": [7.0] * 24})


def add_a_property(folder: Path) -> None:
    path = property_of(folder, "scores", "1.0", accepted=True)
    (path.parent / "set-999.vnnlib").write_text(path.read_text())


def grow_to_the_largest_radius(folder: Path) -> None:
    change_all_radii(folder, 1e308)


def add_a_digit(folder: Path) -> None:
    replaced(property_of(folder, "scores", "1.0", accepted=False), r"(<= Y_0 -?\d+\.\d+)", r"\g<1>" + 40 * "0" + "1")


def set_a_bound_that_no_float32_is(folder: Path) -> None:
    path = property_of(folder, "conditions", "1.0", accepted=False)
    replaced(path, r"\(>= Y_1 -?\d+\.\d+\)", f"(>= Y_1 -1{300 * '0'}.0)")


def say_that_balls_are_round(folder: Path) -> None:
    for path in (*certificates(folder), folder / "claims.json"):
        edited(path, norm="2")


def rename_an_instance(folder: Path) -> None:
    replaced(folder / "conditions" / "instances.csv", "set-", "other-")


def drop_an_instance(folder: Path) -> None:
    path = folder / "scores" / "instances-2.0.csv"
    path.write_text(path.read_text().splitlines(keepends=True)[0])


def exchange_scores(folder: Path) -> None:
    onnx.save(with_energy(random_model(seed=1)), folder / "scores" / "network.onnx")


def scores_without_score(folder: Path) -> None:
    onnx.save(random_model(), folder / "scores" / "network.onnx")


CHANGES = {
    empty_second_version: "vnnlib-2.0/set-",
    turn_second_version: "does not say what conditions/vnnlib-1.0/",
    change_second_box: "does not say what conditions/vnnlib-1.0/",
    drop_a_class: "are not those of the claim",
    weaken_a_class: "are not those of the claim",
    weaken_the_tangent: "are not those of the claim",
    change_tangent: "are not those of the claim",
    hide_a_class: "has the byte 0x0c, expected printable ASCII",
    hide_a_class_of_both: "has the byte 0x0d, expected printable ASCII",
    join_instances: "has the byte 0x0b, expected printable ASCII",
    say_nonsense_for_seconds: "scores/instances.csv does not name the properties",
    empty_the_box: "is empty",
    nest_deeply: "parentheses are nested more than 64 deep",
    multiply_cases: "alternatives, expected at most 3",
    add_slopes_of_nothing: "there are slopes for nothing, which is no ReLU",
    add_last_slopes_of_nothing: "there are slopes for nothing, which is no ReLU",
    change_last_slopes: "a slope is not in [0, 1]",
    add_a_property: "scores/vnnlib-1.0/set-999.vnnlib belongs to no claim",
    grow_to_the_largest_radius: "is smaller than the largest one inside the certificate's ball",
    make_strict: "is not the text that certood writes",
    shrink_the_box_of_a_class: "is smaller than the largest one inside the certificate's ball",
    repeat_the_box_in_a_class: "is not the text that certood writes",
    shrink_the_box_to_its_centre: "is smaller than the largest one inside the certificate's ball",
    shrink_a_side_of_the_box: "is smaller than the largest one inside the certificate's ball",
    add_a_digit: "is not the text that certood writes",
    set_a_bound_that_no_float32_is: "is not the text that certood writes",
    say_that_balls_are_round: "is not inside the certificate's ball",
    rename_an_instance: "conditions/instances.csv does not name the properties",
    drop_an_instance: "scores/instances-2.0.csv does not name the properties",
    exchange_scores: "scores/network.onnx gives the score",
    scores_without_score: "3 logits and 3 scores",
    change_centre: "not inside the certificate's ball",
    drop_a_pixel: "the centre has 39 pixels, the network takes 40",
    turn_the_images: "takes images of [2, 5, 4], those of the detector are [2, 4, 5]",
    change_radius: "radius is 0.0041",
    change_threshold: "threshold is",
    change_weights: "do not sum to one",
    change_decision: "accepted is True",
    change_slopes: "slope is not in",
    change_network: "network_sha256 is",
    change_claim: "radius is 0.004, claims.json or the network have 0.04",
    change_all_thresholds: "the bound does not prove it",
    change_all_radii: "the bound does not prove it",
    change_box: "not inside the certificate's ball",
    change_property: "the outputs in scores/vnnlib-1.0/",
}


@pytest.mark.parametrize("forged", [False, True], ids=["plain", "with new hashes"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_found(folder: Path, change: Any, forged: bool) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    change(folder)
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert changed or change is add_a_property
    if forged:
        rehash(folder)
    found = check(folder)
    assert found.exit_code == 1, found.output
    assert CHANGES[change] in found.output
    if not forged:
        for path in changed:
            name = path.relative_to(folder).as_posix()
            assert name == "claims.json" or f"{name} was changed" in found.output


def test_a_looser_slope_is_still_a_proof_or_is_found(folder: Path) -> None:
    """The hash of the file says that a slope was changed; without it a slope is whatever proves the claim."""
    path = certificates(folder)[0]
    edited(path, slopes={name: [0.5625, *values[1:]] for name, values in content_of(path)["slopes"].items()})
    found = check(folder)
    assert found.exit_code == 1
    assert f"certificates/{path.name} was changed" in found.output
    rehash(folder)
    assert check(folder).exit_code == 0


def test_a_network_of_other_weights_is_judged_as_it_is(folder: Path) -> None:
    """Whoever forges every hash, too, must still prove the claim of the forged network, and cannot where it is false."""
    path = folder / "conditions" / "network.onnx"
    for forged in (path, folder / "scores" / "network.onnx"):
        model = onnx.load(forged)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(5), "b"))
        onnx.save(model, forged)
    for one in certificates(folder):
        edited(one, network_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    rehash(folder)
    found = check(folder)
    # Energy falls by five: the rejected image is accepted now.
    assert found.exit_code == 1
    assert "certificates: 1 of 2 hold" in found.output
    assert "the bound does not prove it" in found.output
    assert "onnxruntime finds the score" in found.output


def test_sampled_points_are_evaluated(folder: Path) -> None:
    assert "sampled" not in check(folder, "--points", "0").output
    assert "sampled: 6 images" in check(folder, "--points", "3").output


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"format": "certood-certificate", "version": 1}',
        '{"format": "certood-certificate", "version": 2}',
    ],
)
def test_damaged_certificates_are_one_error(folder: Path, text: str) -> None:
    path = certificates(folder)[0]
    path.write_text(text)
    with pytest.raises(Damaged, match="is no certificate"):
        read_certificate(path)
    found = check(folder)
    assert found.exit_code == 1
    assert "is no certificate" in found.output


@pytest.mark.parametrize(
    "changes",
    [
        {"radius": -1},
        {"norm": "3"},
        {"centre": [2.0]},
        {"threshold": None},
        {"temperature": -1.0},
        {"accepted": 1},
        {"extra": 0},
    ],
)
def test_numbers_that_make_no_sense_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    path = certificates(folder)[0]
    edited(path, **changes)
    with pytest.raises(Damaged):
        read_certificate(path)


def test_a_network_that_cannot_be_read(folder: Path) -> None:
    path = folder / "conditions" / "network.onnx"
    path.write_bytes(path.read_bytes()[:300])
    found = check(folder)
    assert found.exit_code == 1
    assert "conditions/network.onnx was changed" in found.output
    assert "is not a readable ONNX file" in found.output


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_which_conditions_suffice_for_a_claim(temperature: float) -> None:
    """−T·logsumexp(f/T) ≤ γ from p·f ≥ −γ − T·H(p), > γ from f_k < −γ − T·log K for all k; rows are what refutes that."""
    gamma, few = -1.5, 1e-9
    entropy = 1.5 * math.log(2)  # of one half and two quarters

    def suffices(accepted: bool, *rows: tuple[tuple[float, ...], float]) -> bool:
        box = np.array([0.5])
        cases = tuple(Case(box, box, np.array([row]), np.array([bound])) for row, bound in rows)
        return _suffices(Property(1, 4, cases), Decision(temperature, 3, gamma), 4, accepted=accepted)

    tangent, least = (0.5, 0.25, 0.25, 0.0), -gamma - temperature * entropy
    assert suffices(True, (tangent, least + few))
    assert not suffices(True, (tangent, least - few))
    for row in ((0.5, 0.25, 0.5, 0.0), (1.5, -0.25, -0.25, 0.0), (0.5, 0.25, 0.25, 0.25), (0.5, 0.25, 0.0, 0.0)):
        assert not suffices(True, (row, 1e3))
    assert not suffices(True)
    # A network of fewer outputs than there are classes is not that of the claim, whatever its condition.
    point = np.array([0.5])
    fewer = Property(1, 2, (Case(point, point, np.array([(0.5, 0.5)]), np.array([1e3])),))
    assert not _suffices(fewer, Decision(temperature, 3, gamma), None, accepted=True)
    assert not suffices(True, (tangent, least + few), (tangent, least + few))
    level = gamma + temperature * math.log(3)
    unit = [tuple(-float(k == place) for k in range(4)) for place in range(3)]
    assert suffices(False, *((row, level + few) for row in unit))
    assert not suffices(False, *((row, level + few) for row in unit[:2]))
    assert not suffices(False, *((row, level + (few if place else -few)) for place, row in enumerate(unit)))
    assert not suffices(False, *((row, 1e3) for row in unit[:2]), ((0.0, 0.0, 1.0, 0.0), 1e3))
    assert not suffices(False, *((row, 1e3) for row in unit[:2]), ((0.0, 0.0, -0.5, 0.0), 1e3))


def rewritten(change: Any) -> Any:
    """A change of a network's file that leaves it readable."""

    def of(path: Path) -> None:
        model = onnx.load(path)
        change(model.graph)
        onnx.save(model, path)

    return of


def second_input(graph: Any) -> None:
    graph.input.append(onnx.helper.make_tensor_value_info("Z", 1, [1, *SHAPE]))


def no_output(graph: Any) -> None:
    del graph.output[:]


def lost_node(graph: Any) -> None:
    del graph.node[3]


def lost_weights(graph: Any) -> None:
    del graph.initializer[3]


def no_stride(graph: Any) -> None:
    graph.node[2].attribute[0].ints[:] = [0, 0]


def other_groups(graph: Any) -> None:
    next(given for given in graph.node[4].attribute if given.name == "group").i = 3


def foreign_domain(graph: Any) -> None:
    graph.node[3].domain = "their.own"


def other_size(graph: Any) -> None:
    flat = next(given for given in graph.initializer if given.name == "flat")
    flat.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 23], dtype=np.int64), "flat"))


DAMAGES = (second_input, no_output, lost_node, lost_weights, no_stride, other_groups, foreign_domain, other_size)


@pytest.mark.parametrize("damage", [*map(rewritten, DAMAGES), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("kind", ["conditions", "scores"])
def test_a_damaged_network_is_a_finding_beside_the_others(folder: Path, damage: Any, kind: str) -> None:
    damage(folder / kind / "network.onnx")
    (folder / "scores" / "instances.csv").write_text("")
    found = check(folder)
    assert found.exit_code == 1
    assert isinstance(found.exception, SystemExit), found.exception
    assert f"{kind}/network.onnx was changed" in found.output
    assert "scores/instances.csv was changed" in found.output


DETECTOR: dict[str, Any] = {
    "score": {"name": "energy", "temperature": 1.0},
    "threshold": 1.0,
    "classes": ["a", "b", "c"],
    "input_shape": list(SHAPE),
}


CLAIM: dict[str, Any] = {
    "name": "set-0",
    "accepted": True,
    "eps": 0.1,
    "certificate": None,
    "condition": None,
    "no_certificate": "too loose",
}
CLAIM_CHANGES: tuple[dict[str, Any], ...] = (
    {"certificate": 7},
    {"certificate": "certificates/set-0.json"},
    {"certificate": "/dev/zero"},
    {"certificate": "certificates/set-1.json"},
    {"certificate": "certificates/../scores/network.onnx"},
    {"eps": "0.1"},
    {"eps": math.inf},
    {"condition": 7},
    {"no_certificate": None},
    {"no_certificate": "\ud800 bad"},
    {"no_certificate": "\x1b[2J"},
    {"name": "../set-0"},
    {"name": "set 0"},
    {"name": ""},
)


@pytest.mark.parametrize("temperature", [True, "1", None, math.nan, 10**400])
def test_a_temperature_that_is_no_number_is_a_finding(folder: Path, temperature: Any) -> None:
    describe(folder, {"name": "energy", "temperature": temperature})
    found = check(folder)
    assert found.exit_code == 1
    assert found.output.count("expected a finite number as temperature of the score energy") == 2


@pytest.mark.parametrize("temperature", [1e-3, 1e-5, 1e-300])
def test_a_small_temperature_is_a_finding_and_no_overflow(folder: Path, temperature: float) -> None:
    """Logits are apart by more than 700 temperatures: their exponentials are beyond float64."""
    describe(folder, {"name": "energy", "temperature": temperature})
    for path in certificates(folder):
        edited(path, temperature=temperature)
    rehash(folder)
    found = check(folder)
    assert isinstance(found.exception, SystemExit), found.exception
    # The network of scores has the temperature 1.
    assert "scores/network.onnx gives the score" in found.output


def describe(folder: Path, score: dict[str, Any]) -> None:
    """Say of another score that it is the detector's."""
    content = content_of(folder / "claims.json")
    content["detector"]["score"] = score
    edited(folder / "claims.json", **content)


def without_certificates(folder: Path) -> None:
    """Take the certificates out, as an export does of claims that it does not prove."""
    content = content_of(folder / "claims.json")
    for claim in content["claims"]:
        (folder / claim["certificate"]).unlink()
        claim |= {"certificate": None, "no_certificate": "too loose"}
    edited(folder / "claims.json", **content)
    rehash(folder)


# Changes of the properties of claims that have no certificate, and what is said of them.
ALONE = {
    "gamma": (lambda text: re.sub(r"Y_0 -?\d", "Y_0 -9", text), "are not those of the claim"),
    "one side": (
        lambda text: re.sub(r"\(<= X_2 0\.\d", "(<= X_2 0.99", text),
        "is not the largest one inside a ball",
    ),
    "a point": (
        lambda text: re.sub(r"\(<= X_2 [^)]*", re.search(r"\(>= (X_2 [^)]*)", text).expand(r"(<= \1"), text),  # type: ignore[union-attr]
        "is not the largest one inside a ball",
    ),
    "all of nothing": (
        lambda text: re.sub(r"(X_\d+) [\d.]+\)", r"\1 0.0)", text),
        "is not the largest one inside a ball",
    ),
    "all of one": (lambda text: re.sub(r"(X_\d+) [\d.]+\)", r"\1 1.0)", text), "is not the largest one inside a ball"),
    "no property": (lambda text: "garbage", "cannot be read"),
    "fewer pixels": (lambda text: re.sub(r"\(.*X_39 .*\)\n", "", text), "has 39 inputs"),
}


@pytest.mark.parametrize("change", ALONE)
def test_properties_of_claims_without_a_certificate_are_read(folder: Path, change: str) -> None:
    without_certificates(folder)
    found = check(folder)
    assert found.exit_code == 0, found.output
    path = next((folder / "scores" / "vnnlib-1.0").iterdir())
    before = path.read_text()
    path.write_text(ALONE[change][0](before))
    assert path.read_text() != before
    rehash(folder)
    found = check(folder)
    assert found.exit_code == 1
    assert ALONE[change][1] in " ".join(found.output.split())


def test_conditions_of_claims_without_a_certificate_are_read(folder: Path) -> None:
    accepted = property_of(folder, "conditions", "1.0", accepted=True).stem
    without_certificates(folder)
    for version in ("1.0", "2.0"):
        replaced(folder / "conditions" / f"vnnlib-{version}" / f"{accepted}.vnnlib", r"\) -?[\d.]+\)\)$", ") -1000.0))")
    rehash(folder)
    found = check(folder)
    assert found.exit_code == 1
    assert f"the outputs in conditions/vnnlib-1.0/{accepted}.vnnlib are not those of the claim" in found.output


def test_the_smallest_distance_is_that_of_claims_that_are_proved(folder: Path) -> None:
    network = read_network(folder / "conditions" / "network.onnx")
    margins = [float(read_certificate(path).margin(network)) for path in certificates(folder)]
    assert check_folder(folder).smallest_margin == min(margins)
    edited(certificates(folder)[0], slopes={"first": [0.5] * 24, "second": [0.5] * 24}, radius=0.00399)
    found = check_folder(folder)
    assert (found.proved, found.smallest_margin) == (1, margins[1])
    exchange_scores(folder)
    found = check_folder(folder)
    assert (found.proved, found.smallest_margin) == (0, math.inf)


def test_an_export_without_conditions_needs_no_network_of_logits(folder: Path) -> None:
    without_certificates(folder)
    describe(folder, {"name": "msp"})
    content = content_of(folder / "claims.json")
    content["claims"] = [claim | {"condition": None} for claim in content["claims"]]
    edited(folder / "claims.json", **content)
    shutil.rmtree(folder / "conditions")
    rehash(folder)
    found = check(folder)
    assert found.exit_code == 0, found.output


def test_a_condition_of_a_score_that_has_none_is_a_finding(folder: Path) -> None:
    without_certificates(folder)
    describe(folder, {"name": "msp"})
    found = check(folder)
    assert found.exit_code == 1
    assert found.output.count("there are no conditions of the score msp") == 2


def test_networks_are_opened_where_there_is_no_certificate(folder: Path) -> None:
    without_certificates(folder)
    for kind in ("scores", "conditions"):
        before = (folder / kind / "network.onnx").read_bytes()
        (folder / kind / "network.onnx").write_bytes(b"garbage")
        rehash(folder)
        found = check(folder)
        assert found.exit_code == 1
        assert f"{kind}/network.onnx" in "".join(found.output.split())
        (folder / kind / "network.onnx").write_bytes(before)


@pytest.mark.parametrize("half", [0.05, 0.3, 0.5, 0.7, 1.0])
def test_which_boxes_are_those_around_some_image(half: float) -> None:
    """Against all centres of a grid, in one dimension."""
    grid = np.arange(-5, 106) / 100
    centres = grid[5:-5]
    low, high = np.maximum(centres - half, 0), np.minimum(centres + half, 1)
    for lower in grid:
        for upper in grid:
            expected = bool(((np.abs(low - lower) < 1e-3) & (np.abs(high - upper) < 1e-3)).any())
            assert fills_some_ball(np.array([lower]), np.array([upper]), half) is expected, (lower, upper)


@pytest.mark.parametrize("half", [1e-9, 1e-6, 0.01, 0.3, 0.7])
def test_a_box_that_was_rounded_is_that_around_an_image(half: float) -> None:
    images = np.concatenate(
        [np.float32([0, 1e-45, 1e-7, 0.3, 0.7, 1]), np.random.default_rng(0).random(500, dtype=np.float32)]
    )
    lower, upper = (end.astype(float) for end in box_within(images, half * (1 - 1e-15)))
    assert fills_some_ball(lower, upper, half)


def test_a_box_is_filled_up_to_rounding() -> None:
    random = np.random.default_rng(0)
    for norm, share in ((math.inf, 1.0), (2.0, 20**-0.5), (1.0, 1 / 20)):
        image = np.concatenate([random.random(18, dtype=np.float32), np.float32([0, 1])])
        for radius in (1e-6, 1e-3, 0.7):
            ball = Ball(image.astype(float), radius, norm)
            lower, upper = (end.astype(float) for end in box_within(image, radius * share * (1 - 1e-15)))
            assert ball.holds(lower, upper)
            assert ball.fills(lower, upper)
            few = 1e-3 * radius * share + 4e-7
            for place in range(20):
                shift = few * (np.arange(20) == place)
                assert not ball.fills(lower + shift, upper)
                assert not ball.fills(lower, upper - shift)


@pytest.mark.parametrize(
    "changes",
    [
        {"claims": []},
        {"version": 9},
        {"files": {"../elsewhere": "0"}},
        {"files": {"x": 1}},
        {"detector": {}},
        {"detector": DETECTOR | {"score": "energy"}},
        {"detector": DETECTOR | {"classes": 3}},
        {"detector": DETECTOR | {"threshold": True}},
        {"detector": DETECTOR | {"threshold": 10**400}},
        {"detector": DETECTOR | {"input_shape": [2, 5, True]}},
        {"detector": DETECTOR | {"input_shape": [2, 20]}},
        {"norm": "3"},
        {"detector": DETECTOR | {"classes": []}},
        {"detector": DETECTOR | {"score": {"name": "energy\x1b[2J"}}},
        {"claims": [{"name": "set-0"}]},
        *({"claims": [CLAIM | change]} for change in CLAIM_CHANGES),
        {"norm": None},
    ],
    ids=str,
)
def test_a_damaged_list_of_claims_is_one_error(folder: Path, changes: dict[str, Any]) -> None:
    edited(folder / "claims.json", **changes)
    found = check(folder)
    assert found.exit_code == 1
    assert "claims.json is not that of an export" in " ".join(found.output.split())


def test_every_file_must_have_a_hash(folder: Path) -> None:
    edited(folder / "claims.json", files={})
    found = check(folder)
    assert found.exit_code == 1
    assert "WRONG: certificates/set-12.json has no SHA-256 in claims.json" in found.output
    rehash(folder)
    (folder / "certificates" / "another.json").write_text("{}")
    assert "certificates/another.json has no SHA-256" in check(folder).output
    (folder / "certificates" / "another.json").unlink()
    assert check(folder).exit_code == 0


@pytest.mark.parametrize("key", ["radius", "threshold"])
def test_a_number_beyond_float64_is_a_finding(folder: Path, key: str) -> None:
    edited(certificates(folder)[0], **{key: 10**400})
    found = check(folder)
    assert found.exit_code == 1
    assert isinstance(found.exception, SystemExit), found.exception
    assert "is no certificate" in found.output


def test_without_the_package_onnx_nothing_is_called_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = check(folder)
    assert found.exit_code == 2
    assert found.output == "Error: ONNX files need the extra: pip install 'certood[onnx]'\n"


def test_better_slopes_for_the_last_bound_alone(tmp_path: Path) -> None:
    """They change that bound, in either direction, and no box; a worse choice does not make it worse than the others."""
    network = write_network(tmp_path / "network.onnx")
    ball, slopes = Ball(np.full(math.prod(SHAPE), 0.5), 0.1, math.inf), half_slopes(network)
    rows = np.concatenate([np.eye(3), -np.eye(3)])
    plain = LinearBounds(network, ball, slopes)
    found = []
    for slope in (0.0, 0.25, 0.75, 1.0):
        other = LinearBounds(network, ball, slopes, {name: (slope,) * len(values) for name, values in slopes.items()})
        for one, two in zip(plain.boxes, other.boxes, strict=True):
            np.testing.assert_array_equal(np.stack(one), np.stack(two))
        np.testing.assert_array_equal(other.lower(rows), plain.lower(rows))
        found.append(other.last(rows) - plain.lower(rows))
    assert (np.min(found, 0) >= 0).all()
    assert (np.max(found, 0) > 1e-3).any()
    random = np.random.default_rng(0)
    points = np.clip(0.5 + 0.1 * np.sign(random.standard_normal((200, math.prod(SHAPE)))), 0, 1)
    least = np.min([rows @ network.value(point) for point in points], 0)
    assert (plain.lower(rows) + np.max(found, 0) <= least).all()
    with pytest.raises(ValueError, match="slope"):
        LinearBounds(network, ball, slopes, {"first": (1.5,) * 24}).last(rows)
    with pytest.raises(ValueError, match="slopes for first"):
        LinearBounds(network, ball, slopes, {"first": (0.5,)})


def test_a_folder_that_is_no_export_is_bad_input_and_no_refutation(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nope"):
        found = check(folder)
        assert found.exit_code == 2
        assert "name a folder of `certood export`" in found.output


def test_a_certificate_of_another_norm(tmp_path: Path) -> None:
    network = write_network(tmp_path / "network.onnx")
    image = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    score = float(true_score(network.value(image.astype(float)).tolist(), 1.0))
    plain = certificate(network, "", image, 0.01, accepted=True, threshold=score + 0.2)
    margins = {}
    for norm in ("inf", "2", "1"):
        values = {name: getattr(plain, name) for name in plain.__dataclass_fields__} | {"norm": norm}
        margins[norm] = float(type(plain)(**values).margin(network))
    # A ball of the same radius is smaller in l2, and smaller still in l1.
    assert margins["inf"] < margins["2"] < margins["1"] < 0.2
