"""What larger balls already tell about smaller ones within them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.operations.base import Interval


@dataclass(frozen=True)
class OuterBoxes:
    """Boxes (N, *shape) of nodes that hold over sets of images which contain those that are analysed, image by image.

    Only of the nodes that something curved reads. A neuron whose sign is known over the larger set needs no linear bounds over
    the smaller one.
    """

    boxes: Mapping[int, Interval]

    @staticmethod
    def unbounded(graph: Graph, count: int, device: torch.device) -> OuterBoxes:
        """Those of so many images of which nothing is known."""
        boxes = {}
        for index in graph.curved_readers:
            upper = torch.full((count, *graph.nodes[index].shape), torch.inf, dtype=torch.float64, device=device)
            boxes[index] = -upper, upper
        return OuterBoxes(boxes)

    @staticmethod
    def of(graph: Graph, boxes: Mapping[int, Interval]) -> OuterBoxes:
        """Those of an analysis of all nodes."""
        return OuterBoxes({index: boxes[index] for index in graph.curved_readers})

    @staticmethod
    def memory(graph: Graph) -> int:
        """Bytes that the boxes of one image take."""
        return 16 * sum(graph.nodes[index].shape.numel() for index in graph.curved_readers)

    def chosen(self, images: Tensor) -> OuterBoxes:
        """Those of some images, by their numbers."""
        return OuterBoxes({index: (lower[images], upper[images]) for index, (lower, upper) in self.boxes.items()})

    def put(self, images: Tensor, found: OuterBoxes) -> None:
        """Those of some images, by their numbers, become others."""
        for index, ends in self.boxes.items():
            for end, new in zip(ends, found.boxes[index], strict=True):
                end[images] = new

    def intersected(self, index: int, box: Interval) -> Interval:
        """What is known of a node with what the box says."""
        if index not in self.boxes:
            return box
        lower, upper = self.boxes[index]
        return torch.maximum(box[0], lower), torch.minimum(box[1], upper)
