"""Every idiom of ONNX against onnx.reference in float64 and onnxruntime, on batches against one image at a time."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime, the second opinion on ONNX files, is not installed")

from certood.onnx import OnnxNetwork, read_onnx
from certood.onnx.calls import OPERATORS
from tests.certood.onnx_idioms import IDIOMS
from tests.certood.onnx_oracles import Idiom, by_reference, by_runtime, images


def read(idiom: Idiom, folder: Path) -> OnnxNetwork:
    shape = idiom.shape if len(idiom.shape) == 3 else (1, 1, math.prod(idiom.shape))
    return read_onnx(idiom.write(folder / "network.onnx"), input_shape=(shape[0], shape[1], shape[2]))


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.name)
def test_an_idiom_is_evaluated_as_by_others(idiom: Idiom, tmp_path: Path) -> None:
    network = read(idiom, tmp_path)
    x = images(idiom)
    entered = torch.from_numpy(x.reshape(len(x), *network.image_shape))
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(entered).numpy()
        single = network(entered.float()).double().numpy()
    assert network.outputs == exact.shape[1]
    scale = max(1.0, np.abs(exact).max())
    if "onnx.reference" in idiom.oracles:
        assert np.abs(by_reference(idiom, x) - exact).max() <= idiom.reference_tolerance * scale
        assert network.witness[0].startswith("onnx.reference: largest relative difference")
    if "onnxruntime" in idiom.oracles:
        assert network.witness[1].startswith("onnxruntime: largest relative difference")
        theirs = by_runtime(idiom, x)
        assert np.abs(theirs - exact).max() <= 1e-4 * scale
        assert np.abs(theirs - single).max() <= 1e-4 * scale


def test_idioms_have_distinct_names_and_cover_all_operators() -> None:
    assert len({idiom.name for idiom in IDIOMS}) == len(IDIOMS)
    used = {node.op_type for idiom in IDIOMS for node in idiom.model().graph.node}
    assert OPERATORS.keys() - used == set()


def test_the_page_says_how_many_idioms_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text("utf-8")
    assert f"compares {len(IDIOMS)} idioms" in page
