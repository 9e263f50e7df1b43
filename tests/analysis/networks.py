"""Small networks of every supported kind, points of balls, and an attack: what the tests of bounds share."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.analysis.bounds import Captured, Graph, export
from certood.models.classifier import Normalise

SHAPE = (2, 8, 8)
RADII = {math.inf: 0.03, 2: 0.25, 1: 0.8}
NORMS = tuple(RADII)


class Residual(nn.Module):
    """Two convolutions beside a shortcut, in functional style."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm, self.out = nn.BatchNorm2d(4), nn.Linear(4 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.max_pool2d(F.relu(self.second(x) + x), 2)
        logits: Tensor = self.out(x.view(x.size(0), -1))
        return logits


class Gated(nn.Module):
    """Squeeze and excitation, dense joining, slicing, averages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.out = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.conv(x))
        gated = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        joined = torch.cat([gated, F.avg_pool2d(x, 2), 1 - y], 1)
        pooled: Tensor = F.adaptive_avg_pool2d(joined, 1).flatten(1)
        logits: Tensor = self.out(pooled)
        return logits


class Head(nn.Module):
    """What a network may end in, or mix with: softmax, log-softmax, logsumexp, maxima, padding, absolute values."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.out = kind, nn.Conv2d(2, 4, 3, 2, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x, (1, 0, 0, 1)))
        match self.kind:
            case "softmax":
                z = torch.softmax(3 * y, 1).mean((2, 3))
            case "log-softmax":
                z = torch.log_softmax(y, 1).abs().mean((2, 3))
            case "logsumexp":
                z = torch.logsumexp(y, (2, 3))
            case _:
                z = y.amax((2, 3)) + y.max(2).values.sum(2)
        logits: Tensor = self.out(torch.cat([z, x.flatten(2).sum(2) @ torch.ones(2, 4).to(x) / 128], 1))
        return torch.log_softmax(logits, 1) if self.kind == "softmax" else logits


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(Normalise([0.4, 0.5], [0.3, 0.2]), *layers)


def activated(activation: nn.Module) -> Callable[[], nn.Module]:
    return lambda: sequential(
        nn.Flatten(), nn.Linear(128, 10), activation, nn.Linear(10, 8), activation, nn.Linear(8, 4)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": activated(nn.ReLU()),
    "leaky": activated(nn.LeakyReLU(0.1)),
    "elu": activated(nn.ELU()),
    "sigmoid": activated(nn.Sigmoid()),
    "tanh": activated(nn.Tanh()),
    "softplus": activated(nn.Softplus()),
    "gelu": activated(nn.GELU()),
    "silu": activated(nn.SiLU()),
    "hardtanh": activated(nn.Hardtanh()),
    "relu6": activated(nn.ReLU6()),
    "hardswish": activated(nn.Hardswish()),
    "conv": lambda: sequential(
        nn.Conv2d(2, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, dilation=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 4),
    ),
    "depthwise": lambda: sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.MaxPool2d(3, 2, 1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 4),
    ),
    "residual": Residual,
    "gated": Gated,
    **{kind: partial(Head, kind) for kind in ("softmax", "log-softmax", "logsumexp", "maxima")},
    "elementwise first": lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(128, 6), nn.ReLU(), nn.Linear(6, 4)),
}


def images(count: int = 2) -> Tensor:
    return torch.rand(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(name: str, trained: bool = False) -> nn.Module:
    torch.manual_seed(1)
    model = NETWORKS[name]()
    model(torch.rand(32, *SHAPE))
    if trained:
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(30):
            x = torch.rand(32, *SHAPE)
            loss = F.cross_entropy(model(x), (x.mean((1, 2, 3)) * 40).long() % 4)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.double().eval()


@cache
def exported(name: str) -> Captured:
    """Such a network by torch.export, which takes longer than most of what is asked of it: once in a process."""
    return Captured(export(network(name), images(1)))


@cache
def captured(name: str, trained: bool = False) -> Graph:
    """The graph of such a network with its weights, whose `module` it is."""
    model = network(name, trained).requires_grad_(False)
    return replace(exported(name).bind(model.state_dict()), module=model)


class Together(nn.Module):
    """The logits of several modules side by side: capturing them together takes a third of the time of one by one."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


def failing(names: Sequence[str], held: Tensor) -> list[str]:
    """The names of those modules side by side of whose equally many columns of `held` (..., K) not all are true."""
    parts = held.flatten(0, -2).unflatten(1, (len(names), -1))
    return [name for name, part in zip(names, parts.unbind(1), strict=True) if not part.all()]


def sampled(x: Tensor, eps: float, norm: float, count: int, seed: int = 2) -> Tensor:
    """Points of the ball, most of them on its boundary, clipped to [0, 1]: (count, N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *x.shape, dtype=torch.float64, generator=generator)
    if norm == math.inf:
        step = noise.sign() * eps
    elif norm == 2:
        step = eps * noise / noise.flatten(2).norm(dim=2)[..., None, None, None]
    else:
        # Corners of the cross-polytope and sparse mixtures of them.
        sparse = noise * (noise.abs() > 2.2)
        step = eps * sparse / sparse.flatten(2).abs().sum(2).clamp_min(1e-9)[..., None, None, None]
    inside = torch.rand(count, 1, 1, 1, 1, dtype=torch.float64, generator=generator)
    step[: count // 4] *= inside[: count // 4]
    return (x + step).clamp(0, 1)


def attacked(function: Callable[[Tensor], Tensor], x: Tensor, eps: float, norm: float) -> Tensor:
    """The largest values (N, M) that projected gradient ascent finds for every function value (N, M)."""
    start = function(x)
    best = start.detach().clone()
    for column in range(start.shape[1]):
        for restart in range(2):
            point = sampled(x, eps, norm, 4)[restart].clone()
            for _ in range(6):
                point.requires_grad_()
                value = function(point)[:, column]
                (slope,) = torch.autograd.grad(value.sum(), point)
                best[:, column] = torch.maximum(best[:, column], value.detach())
                moved = point.detach() - x
                if norm == math.inf:
                    moved = (moved + eps / 4 * slope.sign()).clamp(-eps, eps)
                elif norm == 2:
                    moved = moved + eps / 3 * slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
                    moved = moved / (moved.flatten(1).norm(dim=1) / eps).clamp_min(1).view(-1, 1, 1, 1)
                else:
                    peak = slope.flatten(1).abs().argmax(1)
                    corner = torch.zeros_like(slope).flatten(1)
                    rows = torch.arange(len(x))
                    corner[rows, peak] = eps * slope.flatten(1)[rows, peak].sign()
                    moved = 0.6 * moved + 0.4 * corner.view_as(slope)
                point = (x + moved).clamp(0, 1)
    return best
