"""Networks in ONNX files: read, evaluated by plain torch functions, and compared with other evaluations of the file.

    read_onnx("network.onnx") -> OnnxNetwork, a torch module

The way of a file: `files` reads it and the weights beside it, `graph` makes plain values of it, `planning` finds out
which values depend on the image, `network` evaluates it, `witness` compares. `operators` has one function for each ONNX
operator, registered by its name.
"""

from certood.onnx.network import OnnxNetwork
from certood.onnx.reading import read_onnx

__all__ = ["OnnxNetwork", "read_onnx"]
