"""The witness: a graph is compared with the network that it was captured from before anything is certified with it.

Both compute in float64, on images inside of [0, 1] and at its corners; the graph takes one image at a time, so that a network
that mixes the images of a batch shows. Where they differ, the first node that does is looked for. The network in its own
precision, as it runs, is compared as well, up to what rounding may cost: some compute another function there.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from certood.analysis.bounds.exporting import Exported
from certood.analysis.bounds.float64_copy import own_precision
from certood.analysis.bounds.graph import Graph
from certood.errors import CannotCertify

# Logits may be tiny, in a network with random weights, and are compared all the same.
RELATIVE = 1e-9
# Of the network in its own precision, whatever it is: far more than rounding costs, and less than another function does.
RELATIVE_OWN = {torch.float32: 1e-2, torch.float16: 1e-1, torch.bfloat16: 1e-1}
# Inner values that are zero only up to rounding are not where a difference comes from.
NOISE = 1e-15


def probes(shape: torch.Size) -> Tensor:
    """Images (5, *shape): two inside of [0, 1], black, white, and a random corner."""
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(2, *shape, dtype=torch.float64, generator=generator)
    corner = torch.randint(0, 2, (1, *shape), generator=generator).to(torch.float64)
    return torch.cat([inside, torch.zeros_like(corner), torch.ones_like(corner), corner])


def difference(graph: Graph, network: Callable[[Tensor], Tensor], images: Tensor) -> tuple[float, float]:
    """The largest difference between logits of a graph and a network, and the largest logit of the network."""
    with torch.no_grad():
        expected = network(images)
        found = torch.cat([graph(image) for image in images.split(1)])
    if found.shape != expected.shape:
        raise CannotCertify(f"the graph gives logits {tuple(found.shape)}, the network {tuple(expected.shape)}")
    return distance(found, expected)


def distance(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest difference of two tensors, and the largest finite magnitude of the second; equal infinities do not differ."""
    alike = (found == expected) | (found.isnan() & expected.isnan())
    apart = torch.where(alike, 0.0, (found - expected).abs().nan_to_num(nan=torch.inf))
    size = torch.where(expected.isfinite(), expected.abs(), 0.0)
    return (float(apart.max()), float(size.max())) if expected.numel() else (0.0, 0.0)


def agrees(apart: float, size: float, noise: float = 0.0) -> bool:
    """Whether a difference is no more than rounding."""
    return apart <= RELATIVE * size + noise


def rounding(precision: torch.dtype) -> float:
    """What rounding may cost a network in a precision at most, as a share of its outputs."""
    return RELATIVE_OWN.get(precision, RELATIVE)


def check(exported: Exported, graph: Graph, translated: Graph) -> None:
    """Raise CannotCertify where the graph does not compute what the module does, and name the first call that differs.

    `translated` is the graph before affine chains were folded.
    """
    images = probes(exported.shape)
    apart, size = difference(graph, exported.module, images)
    if agrees(apart, size):
        return
    raise CannotCertify(
        f"the captured graph differs from the network by {apart:.3g} in logits of at most {size:.3g}, in float64; "
        f"{_first_difference(exported, translated, images)}. Nothing is certified with a wrong copy; please report this"
    )


def check_own_precision(model: nn.Module, exported: Exported) -> None:
    """Raise CannotCertify where a network in its own precision does not compute, up to rounding, what its copy in float64 does.

    Some of the images are dark, and some have black pixels: what is added to a denominator or in a logarithm shows there.
    """
    precision = own_precision(model)
    if precision == torch.float64:
        return
    images = probes(exported.shape)
    images = torch.cat([images, images[:2] / 1000]).to(precision)
    with torch.no_grad():
        try:
            found = copy.deepcopy(model).cpu().eval()(images).to(torch.float64)
        except RuntimeError:
            # It runs in float64 only, such as one with constants in float64.
            return
        apart, size = distance(found, exported.module(images.to(torch.float64)))
    if apart > rounding(precision) * size:
        raise CannotCertify(
            f"the network in {str(precision).removeprefix('torch.')} differs from its copy in float64 by {apart:.3g} in logits "
            f"of at most {size:.3g}, more than rounding explains: something in it depends on the precision, and bounds would be "
            "those of the copy"
        )


def _first_difference(exported: Exported, translated: Graph, images: Tensor) -> str:
    """Which call of the network is the first whose value differs, or what differs otherwise."""
    values = exported_values(exported, images)
    batch = {step.name: step.layout for step in exported.steps if step.layout is not None}
    singles = [translated.values(image) for image in images.split(1)]
    # A call may have become several nodes, the last of which has its value.
    for index in {node.name: index for index, node in enumerate(translated.nodes)}.values():
        node = translated.nodes[index]
        layout = batch.get(node.name)
        if layout is None or not isinstance(values.get(node.name), Tensor):
            continue
        found = torch.cat([single[index] for single in singles])
        apart, size = distance(found, layout.samples(values[node.name]))
        if not agrees(apart, size, NOISE):
            return f"the first value that differs is that of {node.name}, by {apart:.3g}, at {node.source or 'an unknown place'}"
    return "torch.export's own program differs from the module, or folding does: no single operation shows it"


def exported_values(exported: Exported, images: Tensor) -> Mapping[str, Any]:
    """The value of every node of the exported program, computed by PyTorch."""
    found: dict[str, Any] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            found[n.name] = super().run_node(n)
            return found[n.name]

    module = exported.program.graph_module
    given = [
        exported.constants[exported.stored[node.name]] if node.name in exported.stored else images
        for node in module.graph.nodes
        if node.op == "placeholder"
    ]
    with torch.no_grad():
        Recorder(module).run(*given)
    return found
