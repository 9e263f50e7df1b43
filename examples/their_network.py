"""Somebody else's network, as it comes to a verifier: a class of their own, and a state dict that they saved.

Nothing here knows certood. `make` is the factory that `--architecture their_network:make` names; normalisation is not part of
the network, as is usual, and is told to certood as mean and standard deviation.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

MEAN, STD = (0.3,), (0.35,)


def make(num_classes: int) -> nn.Module:
    """The network for normalised images (N, 1, 8, 8); it ends in a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, num_classes),
    )


def train_and_save(images: Tensor, labels: Tensor, path: Path, *, epochs: int = 8) -> None:
    """Plain cross-entropy on images (N, 1, 8, 8) in [0, 1]; writes the state dict."""
    torch.manual_seed(0)
    network = make(int(labels.max()) + 1)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    normalised = (images - MEAN[0]) / STD[0]
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(network(normalised[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    torch.save(network.eval().state_dict(), path)
