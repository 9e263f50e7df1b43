"""Networks in ONNX files, also of newer operator sets: the same logits, and bounds of them."""

import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from certood.analysis.bounds import LpBall, bound, capture
from certood.checkpoints import load_foreign
from certood.detector import Detector
from certood.errors import CheckpointError

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnx2torch", reason="the extra onnx is not installed")


def written(path: Path, operators: int, weights: dict[str, torch.Tensor], last: str = "Gemm") -> None:
    """relu(conv(x)), averaged over its plane, then a linear layer; the axes of the mean as this operator set wants them."""
    helper = onnx.helper
    axes = {"axes": [2, 3]} if operators < 18 else {}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r"] if axes else ["r", "axes"], ["m"], keepdims=0, **axes),
        helper.make_node(last, ["m", "v", "d"], ["y"], transB=1),
    ]
    tensors = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    if not axes:
        tensors.append(onnx.numpy_helper.from_array(torch.tensor([2, 3]).numpy(), "axes"))
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, ["n", 4])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", operators)], ir_version=8)
    onnx.save(model, str(path))


def read(path: Path) -> Detector:
    normalisation = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    return load_foreign(path, architecture="onnx", classes=4, input_shape=(3, 8, 8), **normalisation)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"w": torch.randn(5, 3, 3, 3), "b": torch.randn(5), "v": torch.randn(4, 5), "d": torch.randn(4)}


@pytest.mark.parametrize("operators", [13, 17, 20])
def test_it_gives_the_same_logits_within_its_bounds(
    operators: int, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    written(tmp_path / "net.onnx", operators, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = read(tmp_path / "net.onnx")
    x = torch.rand(2, 3, 8, 8).double()
    w = {name: value.double() for name, value in weights.items()}

    def logits(images: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(F.conv2d((images - 0.5) / 0.2, w["w"], w["b"], 2, 1))
        return F.linear(hidden.mean((2, 3)), w["v"], w["d"])

    graph = capture(detector.model, x)
    torch.testing.assert_close(graph(x), logits(x), rtol=1e-6, atol=1e-6)
    found = bound(graph, LpBall(x, 0.05), "crown")
    for _ in range(50):
        value = logits((x + 0.05 * (2 * torch.rand_like(x) - 1)).clamp(0, 1))
        assert ((found.lower - 1e-6 <= value) & (value <= found.upper + 1e-6)).all()


def test_an_operation_that_is_not_known_is_named(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    written(tmp_path / "net.onnx", 17, weights, last="Gamma")
    with pytest.raises(CheckpointError, match="Gamma"):
        read(tmp_path / "net.onnx")
