"""A small export made by hand, without torch: a network in ONNX, claims with certificates, properties, claims.json."""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from certood.checking.certificates import ClaimCertificate
from certood.checking.network import Network
from certood.checking.network_file import read_network
from certood.checking.steps import Relu
from certood.claims.properties import Counterexamples
from certood.claims.vnnlib import vnnlib_1, vnnlib_2
from certood.rounding import box_within, dyadic_simplex, float32_below, float32_beyond

SHAPE = (2, 5, 4)
CLASSES = 3
VERSIONS = {"1.0": vnnlib_1, "2.0": vnnlib_2}
INSTANCES = (("1.0", "instances.csv"), ("2.0", "instances-2.0.csv"))


def write_network(path: Path, seed: int = 0, classes: int = CLASSES) -> Network:
    """A normalisation, a strided and padded convolution, a residual block and a linear layer, with random weights."""
    onnx.save(random_model(seed, classes), path)
    return read_network(path)


def random_model(seed: int = 0, classes: int = CLASSES) -> onnx.ModelProto:
    """The network that `write_network` writes."""
    random = np.random.default_rng(seed)

    def normal(name: str, *shape: int, scale: float = 0.5) -> Any:
        values = scale * random.standard_normal(shape)
        return numpy_helper.from_array(values.astype(np.float32), name)

    tensors = [
        numpy_helper.from_array(np.array([0.4, 0.5], dtype=np.float32).reshape(2, 1, 1), "mean"),
        numpy_helper.from_array(np.array([0.3, 0.25], dtype=np.float32).reshape(2, 1, 1), "std"),
        numpy_helper.from_array(np.array([1, 24], dtype=np.int64), "flat"),
        normal("k1", 4, 2, 3, 2),
        normal("b1", 4),
        normal("k2", 4, 2, 3, 3, scale=0.3),
        normal("w", classes, 24),
        normal("b", classes),
    ]
    nodes = [
        helper.make_node("Sub", ["X", "mean"], ["shifted"]),
        helper.make_node("Div", ["shifted", "std"], ["normalised"]),
        helper.make_node(
            "Conv", ["normalised", "k1", "b1"], ["one"], strides=[2, 1], pads=[1, 0, 0, 1], dilations=[1, 2]
        ),
        helper.make_node("Relu", ["one"], ["first"]),
        helper.make_node("Conv", ["first", "k2"], ["two"], pads=[1, 1, 1, 1], group=2),
        helper.make_node("Add", ["two", "first"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["second"]),
        helper.make_node("Reshape", ["second", "flat"], ["vector"]),
        helper.make_node("Gemm", ["vector", "w", "b"], ["Y"], transB=1),
    ]
    entry = helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, *SHAPE])
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, classes])
    graph = helper.make_graph(nodes, "network", [entry], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def with_energy(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network to its energy of temperature 1, (1, 1)."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"))
    graph.node.append(helper.make_node("ReduceLogSumExp", ["Y", "axes"], ["sum_of_classes"]))
    graph.node.append(helper.make_node("Neg", ["sum_of_classes"], ["S"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("S", TensorProto.FLOAT, [1, 1]))
    return model


def half_slopes(network: Network) -> dict[str, tuple[float, ...]]:
    """Slopes of one half for every neuron."""
    values = [np.zeros(math.prod(network.shape))]
    found = {}
    for placed in network.steps:
        values.append(placed.step.value([values[source] for source in placed.inputs]))
        if isinstance(placed.step, Relu):
            found[placed.name] = (0.5,) * values[-1].size
    return found


def certificate(
    network: Network, digest: str, image: NDArray[np.float32], radius: float, *, accepted: bool, threshold: float
) -> ClaimCertificate:
    """One of the energy with temperature 1."""
    logits = network.value(image.astype(np.float64))
    weights = dyadic_simplex(np.exp(logits - logits.max()).tolist()) if accepted else []
    return ClaimCertificate(
        digest, accepted, threshold, 1.0, len(logits), "inf", radius, tuple(image.astype(float).ravel().tolist()),
        tuple(map(float, weights)), half_slopes(network),
    )  # fmt: skip


Row = tuple[tuple[float, ...], float]


def condition(found: ClaimCertificate) -> tuple[Row, ...]:
    """The inequalities of the logits that every counterexample fulfils, one of them: of the tangent, or of a class."""
    if found.accepted:
        entropy = -sum(weight * math.log(weight) for weight in found.weights if weight)
        return ((found.weights, float32_beyond(-found.threshold - entropy)),)
    level = float32_beyond(found.threshold + math.log(found.classes))
    return tuple((tuple(-1.0 * (k == place) for k in range(found.classes)), level) for place in range(found.classes))


def write_export(folder: Path, radius: float = 0.004) -> list[str]:
    """Two claims, of an accepted and of a rejected image at one γ; their names."""
    for part in ("conditions", "scores"):
        for version in VERSIONS:
            (folder / part / f"vnnlib-{version}").mkdir(parents=True)
    (folder / "certificates").mkdir()
    onnx.save(with_energy(random_model()), folder / "scores" / "network.onnx")
    network = write_network(folder / "conditions" / "network.onnx")
    digest = hashlib.sha256((folder / "conditions" / "network.onnx").read_bytes()).hexdigest()
    random = np.random.default_rng(1)
    images = [random.random(SHAPE, dtype=np.float32) for _ in range(40)]
    scores = [-float(np.log(np.exp(network.value(image.astype(float))).sum())) for image in images]
    order = np.argsort(scores)
    threshold = float(scores[order[0]] + scores[order[-1]]) / 2
    claims = []
    for place, accepted in ((order[0], True), (order[-1], False)):
        name = f"set-{place}"
        found = certificate(network, digest, images[place], radius, accepted=accepted, threshold=threshold)
        (folder / "certificates" / f"{name}.json").write_text(found.text())
        lower, upper = (end[None] for end in box_within(images[place], radius))
        row = ((-1.0,), -float32_beyond(threshold)) if accepted else ((1.0,), float32_below(threshold))
        rows = {"scores": (row,), "conditions": condition(found)}
        for part, version in itertools.product(rows, VERSIONS):
            text = VERSIONS[version](Counterexamples(lower, upper, rows[part]), ["a comment"])
            (folder / part / f"vnnlib-{version}" / f"{name}.vnnlib").write_text(text)
        entry = {"name": name, "accepted": accepted, "eps": radius, "certificate": f"certificates/{name}.json"}
        claims.append(entry | {"condition": "in words", "no_certificate": None})
    for part, (version, file) in itertools.product(("scores", "conditions"), INSTANCES):
        lines = [f"network.onnx,vnnlib-{version}/{claim['name']}.vnnlib,300\n" for claim in claims]
        (folder / part / file).write_text("".join(lines))
    content = {
        "format": "certood-claims",
        "version": 1,
        "norm": "inf",
        "detector": {
            "threshold": threshold,
            "score": {"name": "energy", "temperature": 1.0},
            "classes": ["a", "b", "c"],
            "input_shape": list(SHAPE),
        },
        "claims": claims,
        "files": {},
    }
    (folder / "claims.json").write_text(json.dumps(content, indent=1))
    rehash(folder)
    return [str(entry["name"]) for entry in claims]


def rehash(folder: Path, without: Sequence[str] = ("claims.json",)) -> None:
    """Let claims.json have the SHA-256 of the files as they are now, as a forger would."""
    content = json.loads((folder / "claims.json").read_text())
    content["files"] = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }
    (folder / "claims.json").write_text(json.dumps(content, indent=1))
