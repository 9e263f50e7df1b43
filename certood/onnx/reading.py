"""From an ONNX file to a network that was compared with other evaluations of it."""

from pathlib import Path

from certood.onnx.files import read_model
from certood.onnx.graph import read_graph, standardised
from certood.onnx.images import image_layout
from certood.onnx.network import OnnxNetwork
from certood.onnx.planning import plan
from certood.onnx.witness import compare


def read_onnx(path: Path | str, *, input_shape: tuple[int, int, int] | None = None) -> OnnxNetwork:
    """The network of an ONNX file, in eval mode and the floating-point type of the file.

    What the file computes for one image is what the network computes for each image of a batch, also where the file takes
    one image only. `input_shape` (C, H, W) is needed where the file does not say it, and checked where it does (see
    `certood.onnx.images.image_layout`). Raises CheckpointError where the file is damaged, has weights elsewhere than beside it,
    uses an unknown operator or attribute, mixes the images of a batch, or is evaluated differently by onnx.reference or
    onnxruntime (see `certood.onnx.witness.compare`).
    """
    path = Path(path)
    model = standardised(read_model(path))
    graph = read_graph(model)
    network = plan(graph, image_layout(graph.input_shape, input_shape)).eval()
    network.witness = compare(network, model, path)
    return network
