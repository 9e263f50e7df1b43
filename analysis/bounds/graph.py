"""A captured network: nodes in topological order, each an operation on earlier nodes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certood.analysis.bounds.operations import Operation


@dataclass(frozen=True)
class Node:
    """One operation: its inputs are indices of earlier nodes; `shape` is that of one sample; `source` is in user code."""

    name: str
    operation: Operation
    inputs: tuple[int, ...]
    shape: torch.Size
    source: str


@dataclass(frozen=True)
class Graph:
    """A network in eval mode and float64; node 0 is the input image, the last node the logits.

    `module` is the network that was captured, in eval mode and float64.
    """

    nodes: tuple[Node, ...]
    module: nn.Module | None = None

    @property
    def outputs(self) -> int:
        """The number of logits."""
        return self.nodes[-1].shape[0]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.values(images)[len(self.nodes) - 1]

    def values(self, images: Tensor) -> Mapping[int, Tensor]:
        """The value of every node."""
        found = {0: images.to(torch.float64)}
        for index, node in enumerate(self.nodes[1:], start=1):
            found[index] = node.operation.forward([found[source] for source in node.inputs])
        return found
