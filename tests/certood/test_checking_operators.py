"""Every operator that the checker reads: against onnxruntime, its bounds against sampled points, and forms that it refuses."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import numpy_helper  # noqa: E402

from certood.checking.linear_bounds import Ball, LinearBounds  # noqa: E402
from certood.checking.network import Network, Placed  # noqa: E402
from certood.checking.network_file import read_network  # noqa: E402
from certood.checking.operators.layers import OF_A_ROOT, convolution_matrix  # noqa: E402
from certood.checking.reading import CONSTANTS, READERS, Unchecked  # noqa: E402
from certood.checking.steps import Array, Relu, Scale  # noqa: E402
from tests.certood.exported_claims import half_slopes  # noqa: E402

SHAPE = (2, 6, 5)
RANDOM = np.random.default_rng(7)
# What the texts below read by name.
TENSORS: dict[str, Any] = {
    "kernel": RANDOM.standard_normal((4, 2, 3, 3)) / 2,
    "scale": RANDOM.uniform(0.5, 2, 2) * [1, -1],
    "bias": RANDOM.standard_normal(2) / 2,
    "mean": RANDOM.uniform(0.3, 0.7, 2),
    "variance": RANDOM.uniform(0.01, 0.3, 2),
    "negative": np.array([0.5, -0.5]),
    "weight": RANDOM.standard_normal((3, 60)) / 4,
    "matrix": RANDOM.standard_normal((60, 3)) / 4,
    "row": np.array([[-1.0, 0.25, 0.5]]),
    "channels": np.array([0.3, 0.6]).reshape(2, 1, 1),
    "low": np.array(0.3),
    "half": np.array(0.5),
    "most": np.array(0.7),
    "minus_one": np.array([-1]),
    "zero": np.array([0]),
    "one": np.array([1]),
    "three": np.array([3]),
    "one_by_three": np.array([1, 3]),
    "plane": np.array([2, 3]),
    "starts": np.array([1, 0]),
    "ends": np.array([6, 5]),
    "steps": np.array([2, 3]),
    "pads": np.array([0, 1, 0, 0, 0, 0, 1, 2]),
    "pads_of_one": np.array([1, 2]),
    "long": np.array([1, 60]),
    "no_axes": np.array([], dtype=np.int64),
    "seven": np.array([7]),
    "one_twice": np.array([1, -3]),
    "minus_two": np.array([1, -2]),
    "two_images": np.array([2, 1, 6, 5]),
    "huge": np.array([100000, 100000]),
    "huge_pads": np.array([0, 0, 0, 0, 0, 0, 100000, 100000]),
}
# Nodes from X (1, 2, 6, 5) to b, which is flattened.
TEXTS = {
    "Relu": "a = Sub(X, half) b = Relu(a)",
    "Abs": "a = Sub(X, half) b = Abs(a)",
    "LeakyRelu": "a = Sub(X, half) b = LeakyRelu<alpha = 0.1>(a)",
    "LeakyRelu by default": "a = Sub(X, half) b = LeakyRelu(a)",
    "Clip": "b = Clip(X, low, most)",
    "Clip from below": "b = Clip(X, half)",
    "Clip from above": "m = CastLike(most, X) b = Clip(X, , m)",
    "Max": "b = Max(X, channels)",
    "Min": "b = Min(channels, X)",
    "MaxPool": "b = MaxPool<kernel_shape = [2, 3], strides = [2, 1]>(X)",
    "MaxPool, dilated": "b = MaxPool<kernel_shape = [3, 2], dilations = [1, 2], strides = [2, 2]>(X)",
    "AveragePool": "b = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(X)",
    "AveragePool, padding not counted": "b = AveragePool<kernel_shape = [3, 3], strides = [2, 1], pads = [1, 0, 1, 1]>(X)",
    "AveragePool, padding counted": "b = AveragePool<kernel_shape = [3, 2], pads = [1, 0, 1, 1], count_include_pad = 1>(X)",
    "GlobalAveragePool": "b = GlobalAveragePool(X)",
    "ReduceMean": "b = ReduceMean<keepdims = 0>(X, plane)",
    "ReduceMean of one axis": "b = ReduceMean(X, minus_one)",
    "BatchNormalization": "a = BatchNormalization<epsilon = 0.001>(X, scale, bias, mean, variance) b = Relu(a)",
    "BatchNormalization by default": "b = BatchNormalization(X, scale, bias, mean, variance)",
    "Concat of channels": "a = Sub(X, half) c = Relu(a) b = Concat<axis = 1>(c, X)",
    "Concat of columns": "a = Sub(X, half) c = Relu(a) b = Concat<axis = -1>(a, c)",
    "Slice": "a = Slice(X, starts, ends, plane, steps) b = Relu(a)",
    "Slice without axes": "v = Flatten<axis = 4>(X) w = Reshape(v, long) b = Slice(w, zero, one)",
    "Pad": "b = Pad(X, pads)",
    "Pad of one axis": 'b = Pad<mode = "constant">(X, pads_of_one, , one)',
    "Transpose": "a = Transpose<perm = [0, 3, 1, 2]>(X) b = Relu(a)",
    "Transpose by default": "v = Flatten(X) b = Transpose(v)",
    "Squeeze, Unsqueeze": "a = Unsqueeze(X, one) b = Squeeze(a, one)",
    "Squeeze of all": "a = Squeeze(X) b = Unsqueeze(a, zero)",
    "Sub of activations": "a = Sub(X, half) c = Relu(a) b = Sub(a, c)",
    "Sub from a constant": "a = Sub(channels, X) b = Relu(a)",
    "Add of activations": "a = Sub(X, half) c = Relu(a) b = Add(c, X)",
    "Neg, Add, Mul, Div": "a = Neg(X) c = Add(channels, a) d = Mul(c, channels) b = Div(d, channels)",
    "Conv": "a = Conv<kernel_shape = [3, 3], pads = [1, 0, 1, 1]>(X, kernel) b = Relu(a)",
    "Gemm": "v = Flatten(X) b = Gemm<transB = 1>(v, weight, row)",
    "Gemm, not transposed": "v = Flatten(X) b = Gemm(v, matrix)",
    "MatMul": "v = Flatten(X) w = Identity(v) c = MatMul(w, matrix) b = Add(c, row)",
    "Cast": "a = Cast<to = 1>(X) f = Cast<to = 1>(long) s = Cast<to = 7>(f) b = Reshape(a, s)",
    "shapes": "s = Shape<start = 0, end = 1>(X) t = Shape(s) v = Concat<axis = 0>(t, minus_one) i = Identity(v) "
    "c = Reshape(X, i) z = Constant<value_float = 0.25>() e = Expand(z, one_by_three) r = Reshape(e, minus_one) "
    "q = Slice(r, zero, one) b = Add(c, q)",
}


def model(text: str) -> Any:
    """Nodes from X to b, and Y (1, K), with the constants that they name."""
    entry, output = "float[1, 2, 6, 5] X", "float[1, K] Y"
    head = f'<ir_version: 10, opset_import: ["" : 20]> network ({entry}) => ({output})'
    found = onnx.parser.parse_model(f"{head} {{ {text} Y = Flatten<axis = 0>(b) }}")
    for name in sorted({name for node in found.graph.node for name in node.input} & TENSORS.keys()):
        value = TENSORS[name]
        kind = np.int64 if value.dtype.kind == "i" else np.float32
        found.graph.initializer.append(numpy_helper.from_array(value.astype(kind), name))
    return found


def read(folder: Path, text: str) -> Network:
    onnx.save(model(text), folder / "network.onnx")
    return read_network(folder / "network.onnx")


def test_the_table_has_every_operator() -> None:
    used = {node.op_type for text in TEXTS.values() for node in model(text).graph.node}
    assert used == READERS.keys() | CONSTANTS.keys()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_values_are_those_of_onnxruntime(tmp_path: Path, text: str) -> None:
    network = read(tmp_path, text)
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    for image in np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32):
        (expected,) = session.run(None, {"X": image[None]})
        assert expected.size == network.outputs
        np.testing.assert_allclose(network.value(image.astype(float)), expected.ravel(), rtol=1e-5, atol=1e-5)


def corners(ball: Ball, count: int) -> Array:
    """Points of an l_inf ball, most of them corners."""
    random = np.random.default_rng(1)
    share = np.sign(random.standard_normal((count, len(ball.centre)))) * np.where(
        random.random((count, 1)) < 0.7, 1, random.random((count, len(ball.centre)))
    )
    return np.clip(ball.centre + ball.radius * share, 0, 1)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("radius", [1e-9, 0.02, 0.3])
def test_no_point_of_a_ball_leaves_the_bounds(tmp_path: Path, text: str, radius: float) -> None:
    """Every value of every step, and rows of the logits; in a ball of nearly no radius both are the same."""
    network = read(tmp_path, text)
    ball = Ball(np.random.default_rng(2).random(math.prod(SHAPE)), radius, math.inf)
    bounds = LinearBounds(network, ball, half_slopes(network))
    points = [network.values(point) for point in corners(ball, 200)]
    for place, box in enumerate(bounds.boxes):
        values = np.stack([point[place] for point in points])
        assert (values >= box.lower - 1e-12).all()
        assert (values <= box.upper + 1e-12).all()
    rows = np.random.default_rng(3).standard_normal((6, network.outputs))
    lower = bounds.lower(rows)
    least = np.min([rows @ point[-1] for point in points], 0)
    assert (lower <= least + 1e-12).all()
    if radius == 1e-9:
        np.testing.assert_allclose(lower, least, atol=1e-6)
        assert (lower < least).all()


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("b = Clip(X, low, most)", lambda x: np.clip(x, np.float32(0.3), np.float32(0.7))),
        ("a = Sub(X, half) b = Abs(a)", lambda x: np.abs(x - 0.5)),
        ("a = Sub(X, half) b = LeakyRelu<alpha = 0.25>(a)", lambda x: np.maximum(x - 0.5, 0.25 * (x - 0.5))),
        ("d = MaxPool<kernel_shape = [1, 2]>(X) b = Sub(d, low)", lambda x: x - np.float32(0.3)),
    ],
)
def test_lines_of_one_bend(tmp_path: Path, text: str, function: Any) -> None:
    """Of one pixel, or the larger of two: slopes 0 and 1 have the least value, chords the largest."""
    network = read(tmp_path, text)
    row = np.eye(network.outputs)[:1]
    for centre, radius in ((0.45, 0.2), (0.6, 0.35), (0.2, 0.05), (0.55, 0.02), (0.9, 0.05)):
        ball = Ball(np.full(math.prod(SHAPE), centre), radius, math.inf)
        inside = function(
            np.clip([0, 0.3, np.float32(0.3), 0.5, 0.7, 1], max(centre - radius, 0), min(centre + radius, 1))
        )
        found = []
        for slope in (0.0, 1.0):
            slopes = {name: (slope,) * len(values) for name, values in half_slopes(network).items()}
            bounds = LinearBounds(network, ball, slopes)
            found.append((float(bounds.lower(row)[0]), -float(bounds.lower(-row)[0])))
        assert max(low for low, _ in found) == pytest.approx(inside.min(), abs=1e-9)
        # The chord of a difference of two pixels is half its width above the larger one.
        loose = np.ptp(inside) / 2 if "MaxPool" in text else 0
        assert min(high for _, high in found) == pytest.approx(inside.max() + loose, abs=1e-9)


REFUSED = {
    "a = Squeeze(X, no_axes) b = ReduceMean(a, one)": "found an empty list",
    "b = Unsqueeze(X, no_axes)": "expected axes of Unsqueeze",
    "b = ReduceMean(X, seven)": "axes of the images",
    "b = ReduceMean(X, one_twice)": "axes of the images",
    "b = Reshape(X, minus_two)": "expected a shape of sizes",
    "b = Concat(X, X)": "an axis of Concat",
    "v = Concat(one, one) b = Reshape(X, v)": "an axis of Concat",
    "b = MaxPool<kernel_shape = [0, 2]>(X)": "at least 1",
    "b = MaxPool<kernel_shape = [2, 2], strides = [1, 0]>(X)": "at least 1",
    "b = Conv<strides = [0, 1]>(X, kernel)": "windows, steps and pads",
    "b = Conv<pads = [-1, 0, 0, 0]>(X, kernel)": "windows, steps and pads",
    "b = AveragePool<kernel_shape = [9, 9]>(X)": "does not fit",
    "a = Reshape(X, two_images) b = AveragePool<kernel_shape = [1, 1]>(a)": "expected a matrix for 60 numbers",
    "b = AveragePool<kernel_shape = [60000, 60000], pads = [60000, 60000, 60000, 60000]>(X)": "too large",
    "e = Expand(half, huge) v = Flatten(X) b = Gemm(v, e)": "too large",
    "b = Pad(X, huge_pads)": "too large",
    "a = Relu(X) a0 = Concat<axis = 1>(a, a) a1 = Concat<axis = 1>(a0, a0, a0, a0, a0, a0, a0, a0, a0, a0) "
    "a2 = Concat<axis = 1>(a1, a1, a1, a1, a1, a1, a1, a1, a1, a1) a3 = Concat<axis = 1>(a2, a2, a2, a2, a2, a2, a2, a2, a2, a2) "
    "a4 = Concat<axis = 1>(a3, a3, a3, a3, a3, a3, a3, a3, a3, a3) a5 = Concat<axis = 1>(a4, a4, a4, a4, a4, a4, a4, a4, a4, a4) "
    "b = Concat<axis = 1>(a5, a5, a5, a5, a5, a5, a5, a5, a5, a5)": "too large",
    '"c/least" = Relu(X) c = Clip("c/least", half) b = Relu(c)': "two steps are called 'c/least'",
    "b = MaxPool<kernel_shape = [2, 2], pads = [1, 1, 0, 0]>(X)": "pads",
    "b = MaxPool<kernel_shape = [7, 2]>(X)": "does not fit",
    "b, i = MaxPool<kernel_shape = [2, 2]>(X)": "expected one output",
    "b = AveragePool<kernel_shape = [2, 2], ceil_mode = 1>(X)": "ceil_mode",
    'b = AveragePool<kernel_shape = [2, 2], auto_pad = "SAME_UPPER">(X)': "auto_pad",
    "b = ReduceMean(X)": "axes of the images",
    "b = ReduceMean(X, zero)": "axes of the images",
    "b = BatchNormalization<training_mode = 1>(X, scale, bias, mean, variance)": "training_mode",
    "b = BatchNormalization(X, scale, bias, mean, negative)": "above 0",
    "b = LeakyRelu<alpha = 1.5>(X)": "from 0 to 1",
    "b = LeakyRelu<alpha = -0.5>(X)": "from 0 to 1",
    "b = Max(X, half, most)": "3 inputs",
    'b = Pad<mode = "edge">(X, pads)': "mode",
    "b = Pad(X, pads, half)": "zeros as padding",
    "b = Pad(X, pads, one)": "zeros as padding",
    "b = Cast<to = 10>(X)": "stay float32",
    "c = Cast<to = 10>(half) b = Add(X, c)": "of type float16",
    "b = Relu(X) b = Relu(b)": "two values are called 'b'",
    "b = Relu<unheard_of = 1>(X)": "unheard_of of Relu",
    "b = Conv<kernel_shape = [5, 5]>(X, kernel)": "kernel_shape",
    "b = Conv<group = 2>(X, kernel)": "does not suit 2 channels",
    "b = Conv(X, kernel, bias)": "a bias for each of 4",
    "b = Div(half, X)": "division by a constant",
    "b = Mul(X, X)": "ValueError",
    "c = Floor(half) b = Add(X, c)": "Floor of constants",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=REFUSED)
def test_forms_that_are_not_known_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(Unchecked, match=message):
        read(tmp_path, text)


def test_the_root_of_a_batch_normalisation_is_doubted(tmp_path: Path) -> None:
    network = read(tmp_path, "b = BatchNormalization(X, scale, bias, mean, variance)")
    doubts = [placed.step.doubt for placed in network.steps if isinstance(placed.step, Scale)]
    assert doubts == [OF_A_ROOT, 0.0]


def test_windows_that_lie_in_the_padding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match="wholly in the padding"):
        read(tmp_path, "b = AveragePool<kernel_shape = [1, 1], pads = [1, 1, 1, 1]>(X)")


def test_limits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    found = model("b = Clip(X, low, most)")
    limit = next(tensor for tensor in found.graph.initializer if tensor.name == "most")
    limit.CopyFrom(numpy_helper.from_array(np.array(np.inf, dtype=np.float32), "most"))
    onnx.save(found, tmp_path / "network.onnx")
    with pytest.raises(Unchecked, match="finite limits"):
        read_network(tmp_path / "network.onnx")


def test_what_underflows_on_the_way_back_is_counted() -> None:
    """x·1e300·1e-162·1e-162 is 1e-24 at 1, of which the row that goes back keeps nothing."""
    network = Network((1, 1, 1), outputs=1)
    for place, factor in enumerate((1e300, 1e-162, 1e-162)):
        network.steps.append(Placed(str(place), Scale(np.array([factor])), (place,)))
    bounds = LinearBounds(network, Ball(np.array([0.5]), 0.5, math.inf), {})
    assert float(bounds.lower(np.array([[-1.0]]))[0]) <= -(1 - 1e-9) * 1e-24
    relu = Network((1, 1, 1), outputs=1)
    factors = (1e300, 1e-162, None, 1e-162)
    for place, value in enumerate(factors):
        relu.steps.append(Placed(str(place), Relu() if value is None else Scale(np.array([value])), (place,)))
    bounds = LinearBounds(relu, Ball(np.array([0.5]), 0.5, math.inf), {"2": (1.0,)})
    assert float(bounds.lower(np.array([[-1.0]]))[0]) <= -(1 - 1e-9) * 1e-24


def test_numbers_must_be_floats_and_attributes_are_given_once(tmp_path: Path) -> None:
    found = model("b = LeakyRelu<alpha = 0.5>(X)")
    found.graph.node[0].attribute.append(onnx.helper.make_attribute("alpha", 0.25))
    onnx.save(found, tmp_path / "network.onnx")
    with pytest.raises(Unchecked, match="given twice"):
        read_network(tmp_path / "network.onnx")
    for kind in (onnx.TensorProto.INT64, onnx.TensorProto.FLOAT16):
        found = model("b = Relu(X)")
        found.graph.input[0].type.tensor_type.elem_type = kind
        onnx.save(found, tmp_path / "network.onnx")
        with pytest.raises(Unchecked, match="images of float32 or float64"):
            read_network(tmp_path / "network.onnx")


def test_a_kernel_must_suit_its_groups() -> None:
    with pytest.raises(Unchecked, match="in 3 groups"):
        convolution_matrix(np.zeros((4, 2, 1, 1)), (6, 2, 2), (1, 1), (0, 0, 0, 0), (1, 1), 3)
