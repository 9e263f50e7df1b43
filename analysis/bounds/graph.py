"""A captured network: nodes in topological order, each an operation on earlier nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from certood.analysis.bounds.operations.base import Nonlinear, Operation, in_precision


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
    """A network in eval mode; node 0 is the input image, the last node the logits.

    `module` is the network that was captured, in eval mode and float64; `dtype` that of the constants, in which values are
    computed.
    """

    nodes: tuple[Node, ...]
    module: nn.Module | None = None
    dtype: torch.dtype = torch.float64

    @property
    def outputs(self) -> int:
        """The number of logits."""
        return self.nodes[-1].shape[0]

    @cached_property
    def rounded(self) -> list[Operation]:
        """The operations with their constants in float32."""
        return [in_precision(node.operation, torch.float32) for node in self.nodes]

    @cached_property
    def readers(self) -> Mapping[int, list[int]]:
        """The nodes that read each node."""
        found: dict[int, list[int]] = {index: [] for index in range(len(self.nodes))}
        for index, node in enumerate(self.nodes):
            for source in set(node.inputs):
                found[source].append(index)
        return found

    @cached_property
    def curved_readers(self) -> Mapping[int, list[Nonlinear]]:
        """The operations that are not linear and read a node, of every node that has any."""
        found = {}
        for index, readers in self.readers.items():
            operations = [self.nodes[reader].operation for reader in readers]
            curved = [operation for operation in operations if isinstance(operation, Nonlinear)]
            if curved:
                found[index] = curved
        return found

    def row_size(self, node: int, window: tuple[int, int]) -> int:
        """How many numbers a row of a node takes where it is widest, if it is a window of this size at first."""
        sizes: dict[int, Sequence[int]] = {node: window}
        widest = 0
        for index in range(node, -1, -1):
            if index not in sizes:
                continue
            shape, size = self.nodes[index].shape, sizes[index]
            widest = max(widest, shape[0] * size[0] * size[1] if len(shape) == 3 else shape.numel())
            for source in self.nodes[index].inputs:
                before = self.nodes[source].shape
                grown = self.nodes[index].operation.window_before(size, before) if len(before) == 3 else (1, 1)
                sizes[source] = [max(pair) for pair in zip(sizes.get(source, grown), grown, strict=True)]
        return widest

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.values(images)[len(self.nodes) - 1]

    def values(self, images: Tensor) -> Mapping[int, Tensor]:
        """The value of every node."""
        found = {0: images.to(self.dtype)}
        for index, node in enumerate(self.nodes[1:], start=1):
            found[index] = node.operation.forward([found[source] for source in node.inputs])
        return found
