"""An ONNX graph as a torch module: its nodes, one after the other, by plain torch functions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from certood.onnx import operators  # noqa: F401 (registers them)
from certood.onnx.calls import OPERATORS, BatchAxis, ByImage, Call, Node, Reads, Static
from certood.onnx.images import ImageLayout


@dataclass(frozen=True)
class Step:
    """A node that is evaluated for every batch, with what was found out about its inputs when the file was read.

    `static` holds known inputs that the operator reads as numbers, `by_image` those with numbers for each image;
    `batch_axes` where the images lie in an input; `released` the values that no later step needs.
    """

    node: Node
    static: Mapping[int, Static]
    by_image: Mapping[int, ByImage]
    batch_axes: Mapping[int, BatchAxis]
    inputs: frozenset[int]
    released: tuple[str, ...] = ()


class OnnxNetwork(nn.Module):
    """The network of an ONNX file: images (N, C, H, W) in [0, 1] to logits (N, K).

    Initialisers are parameters, other floating-point constants and all integers are buffers. Evaluate it in float64 as a
    witness of what the file computes: `copy.deepcopy(network).double()`; it was compared with independent evaluations of the
    file when it was read (`witness`).
    """

    def __init__(
        self,
        steps: Sequence[Step],
        constants: Mapping[str, Tensor],
        weights: frozenset[str],
        layout: ImageLayout,
        input_name: str,
        output_name: str,
        outputs: int,
    ) -> None:
        super().__init__()
        self.steps, self.layout, self.outputs = tuple(steps), layout, outputs
        self.input_name, self.output_name = input_name, output_name
        self.witness: tuple[str, ...] = ()
        self.stored = nn.Module()
        self._names: dict[str, str] = {}
        for name, value in constants.items():
            attribute = self._attribute(name)
            self._names[name] = attribute
            if name in weights and value.is_floating_point():
                self.stored.register_parameter(attribute, nn.Parameter(value))
            else:
                self.stored.register_buffer(attribute, value)

    def _attribute(self, name: str) -> str:
        """A name for a tensor that a module may have, near that in the file."""
        found = re.sub(r"\W", "_", name) or "value"
        while hasattr(self.stored, found):
            found += "_"
        return found

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) in pixels."""
        return self.layout.image_shape

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.values(images)[self.output_name].flatten(1)

    def values(self, images: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        """The network's output by its name, and with `keep` every value that is computed, by its name in the file."""
        stored = {name: getattr(self.stored, attribute) for name, attribute in self._names.items()}
        dtype = next((value.dtype for value in stored.values() if value.is_floating_point()), images.dtype)
        entered = self.layout(images)
        values: dict[str, Tensor] = {
            **stored,
            self.input_name: entered if entered.dtype == dtype else entered.to(dtype),
        }
        for step in self.steps:
            inputs = [values[name] if index in step.inputs else None for index, name in enumerate(step.node.inputs)]
            call = Call(
                node=step.node,
                values=inputs,
                batch=images.shape[0],
                dtype=dtype,
                device=images.device,
                batch_axes=step.batch_axes,
                static_of=step.static.get,
                by_image=step.by_image.get,
                reads=Reads(),
            )
            values |= outputs_of(step.node, OPERATORS[step.node.operator](call))
            for name in () if keep else step.released:
                values.pop(name, None)
        return values


def outputs_of(node: Node, found: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What an operator returned, by the names of the node's outputs."""
    several = found if isinstance(found, tuple) else (found,)
    return {name: value for name, value in zip(node.outputs, several, strict=False) if name}
