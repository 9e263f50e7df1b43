"""Networks whose penultimate features are cut off at a ceiling before the last layer (ReAct)."""

from typing import Self

import torch
from torch import Tensor, nn

from certood.errors import ArchitectureError
from certood.models.classifier import Classifier

# Architectures of such networks are named by this and the network's own name: react:small-cnn.
RECTIFIED = "react"


class RectifiedLinear(nn.Linear):
    """A linear layer of features (N, F) that are cut off at a ceiling: W·min(z, c) + b, with c the option `ceiling`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, ceiling: float) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.ceiling = float(ceiling)

    @classmethod
    def of(cls, layer: nn.Linear, ceiling: float) -> Self:
        """The layer with the same weights, and a ceiling before it."""
        found = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, ceiling=ceiling)
        found.load_state_dict(layer.state_dict())
        return found

    def forward(self, features: Tensor) -> Tensor:
        """Outputs (N, K) of features (N, F)."""
        return super().forward(features.clamp(max=self.ceiling))

    def extra_repr(self) -> str:
        """The layer's sizes and its ceiling."""
        return f"{super().extra_repr()}, ceiling={self.ceiling}"


def last_layer(network: nn.Module, name: str) -> tuple[str, nn.Linear]:
    """The path and the layer that is the head of a classifier; `name` is what errors call the network.

    Raises ArchitectureError where the logits are not one plain linear layer of the penultimate features.
    """
    linear = [(path, part) for path, part in network.named_modules() if type(part) is nn.Linear]
    if isinstance(network, Classifier) and linear and _is_head(network, linear[-1][1]) and _ends_in_head(network):
        return linear[-1]
    raise ArchitectureError(f"{name}: its logits are not one plain linear layer of its penultimate features")


def _is_head(network: Classifier, layer: nn.Linear) -> bool:
    """Whether the head is this layer and nothing else: the layer gets its input as it is, and gives its output."""
    seen: list[tuple[object, object]] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    features = layer.weight.new_zeros(2, layer.in_features)
    try:
        logits = network.head(features)
    except (RuntimeError, NotImplementedError):  # it takes features of another shape, or is not apart from the rest
        return False
    finally:
        hook.remove()
    return len(seen) == 1 and seen[0][0] is features and seen[0][1] is logits


def _ends_in_head(network: Classifier) -> bool:
    """Whether the logits of images are those that the head gives for their features."""
    weight = next(network.parameters())
    if weight.is_meta:  # without values nothing can be compared: so are networks built whose weights are read next
        return True
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *network.interface.input_shape, generator=generator).to(weight)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return torch.allclose(network.head(network.features(images)), network(images), rtol=1e-3, atol=1e-5)
    except (ArchitectureError, NotImplementedError):
        return False
    finally:
        network.train(training)


def rectified(network: Classifier, name: str, ceiling: float) -> Classifier:
    """The network itself with a ceiling before its last layer; the names of its weights stay. Raises as `last_layer` does."""
    path, layer = last_layer(network, name)
    network.set_submodule(path, RectifiedLinear.of(layer, ceiling))
    return network
