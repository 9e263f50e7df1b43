"""Decomposed and other operations: captured, equal to torch's own, and no sampled value leaves their bounds."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.analysis.bounds import LpBall, bound, capture, gradient_bound, supported_operations
from certood.analysis.bounds.decompositions import DECOMPOSITIONS
from certood.errors import CannotCertify
from certood.scores import Energy
from tests.analysis.networks import Together, failing, images, sampled
from tests.quick import every_is_quick

EPS = 0.02
WEIGHTS = torch.randn(3, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) / 10
# Constants of the functions below, which the module holds as one would.
G = torch.Generator().manual_seed(3)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=G)


class Applied(nn.Module):
    """Logits (N, 3) that read everything which a function, or module, makes of the image (N, 2, 8, 8)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(x).flatten(1)
        return F.linear(y, WEIGHTS[:, : y.shape[1]])


def centred(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function on [−3, 3] in place of [0, 1]."""
    return lambda x: function(6 * x - 3)


def shifted(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function on [1/2, 3/2]."""
    return lambda x: function(x + 0.5)


def filled(module: nn.Module) -> nn.Module:
    """A module with weights that differ from those it starts with."""
    module = module.double().eval()
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.5 + 0.5 * torch.rand(value.shape, generator=G, dtype=torch.float64))
    return module


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, **options).double()  # type: ignore[arg-type]
        self.first = bool(options.get("batch_first"))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        if self.first:
            return self.inner(tokens, tokens, tokens, need_weights=False)[0]
        tokens = tokens.transpose(0, 1)
        return self.inner(tokens, tokens, tokens)[0].transpose(0, 1)


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(drawn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], 1)


class Windows(nn.Module):
    """Swin's: windows are folded into the batch and out of it again."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mask = nn.Linear(2, 6).double(), drawn(4, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        y = x.view(n, 2, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(n * 4, 16, 2)
        q, k, v = self.inner(y).reshape(n * 4, 16, 3, 1, 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1)).view(n, 4, 1, 16, 16) + self.mask[None, :, None]
        return (weights.view(-1, 1, 16, 16).softmax(-1) @ v).transpose(1, 2).reshape(n, 4, 16, 2)


class FoldedNorm(nn.Module):
    """LeViT's: tokens are folded into the batch before a batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = filled(nn.BatchNorm1d(8))

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1, 2)
        return self.norm(y.flatten(0, 1)).reshape_as(y)


class SinglePrecision(nn.Module):
    """XCiT's: a constant is computed in float32, and rounded there, also in a network in float64."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.tensor([0.1, 0.7, 0.3, 1.1, 2.3, 0.9, 1.7, 2.9])
        return x * (places / 0.3).sin()


def max_min(x: Tensor) -> Tensor:
    one, two = x.chunk(2, 1)
    return torch.cat([torch.maximum(one, two), torch.minimum(one, two)], 1)


def group_sort(x: Tensor) -> Tensor:
    pairs = x.flatten(1).unflatten(1, (-1, 2))
    return torch.stack([pairs.amax(2), pairs.amin(2)], 2)


MASK = drawn(8, 8) > 0
PLANE = drawn(2, 8, 8)
INDEX = torch.tensor([3, 0, 0, 6])
tokens = partial(torch.flatten, start_dim=1, end_dim=2)

CASES: dict[str, Callable[[Tensor], Tensor] | nn.Module] = {
    "layer norm": filled(nn.LayerNorm([8, 8])),
    "layer norm without weights": nn.LayerNorm(8, elementwise_affine=False),
    "group norm": filled(nn.GroupNorm(2, 2)),
    "instance norm": filled(nn.InstanceNorm2d(2, affine=True)),
    "instance norm with statistics": filled(nn.InstanceNorm2d(2, affine=True, track_running_stats=True)),
    "RMS norm": filled(nn.RMSNorm(8)),
    "local response norm": nn.LocalResponseNorm(2),
    "batch norm 1d": nn.Sequential(nn.Flatten(2), filled(nn.BatchNorm1d(2))),
    "batch norm of tokens in the batch": FoldedNorm(),
    "constants in single precision": SinglePrecision(),
    "PReLU": centred(filled(nn.PReLU(2))),
    "PReLU of one slope": centred(filled(nn.PReLU())),
    "SELU": centred(F.selu),
    "CELU": centred(partial(F.celu, alpha=1.7)),
    "ELU above 1": centred(partial(F.elu, alpha=2.5)),
    "ELU below 1": centred(partial(F.elu, alpha=0.5)),
    "mish": centred(F.mish),
    "GELU": centred(F.gelu),
    "GELU by tanh": centred(partial(F.gelu, approximate="tanh")),
    "log-sigmoid": centred(F.logsigmoid),
    "GLU": centred(partial(F.glu, dim=1)),
    "softsign": centred(F.softsign),
    "tanhshrink": centred(F.tanhshrink),
    "softmin": centred(partial(F.softmin, dim=2)),
    "hard-shrink": centred(partial(F.hardshrink, lambd=0.7)),
    "soft-shrink": centred(partial(F.softshrink, lambd=0.7)),
    "threshold": centred(lambda x: F.threshold(x, 0.3, -1.0)),
    "sign": centred(torch.sign),
    "rrelu": centred(F.rrelu),
    "leaky ReLU of any slope": centred(partial(F.leaky_relu, negative_slope=-0.3)),
    "softplus": centred(partial(F.softplus, beta=2, threshold=2)),
    "square": centred(torch.square),
    "x·x": centred(lambda x: x * x),
    "cube": centred(lambda x: x**3),
    "fourth power": centred(lambda x: x**4),
    "power 0": centred(lambda x: x**0 * x),
    "power 1.5": shifted(lambda x: x**1.5),
    "power 0.3": shifted(lambda x: x**0.3),
    "power −2": shifted(lambda x: x**-2),
    "power −0.5": shifted(lambda x: x**-0.5),
    "power of 2": centred(lambda x: 2**x),
    "sqrt": shifted(torch.sqrt),
    "rsqrt": shifted(torch.rsqrt),
    "log": shifted(torch.log),
    "log1p": torch.log1p,
    "log2": shifted(torch.log2),
    "log10": shifted(torch.log10),
    "expm1": centred(torch.expm1),
    "exp2": centred(torch.exp2),
    "reciprocal": shifted(torch.reciprocal),
    "division of activations": lambda x: x[:, :1] / (x[:, 1:] + 0.5),
    "division of a number": shifted(lambda x: 2.5 / x),
    "division by a constant": lambda x: x / (PLANE.abs() + 0.5),
    "maximum": lambda x: torch.maximum(x[:, 0], x[:, 1]),
    "minimum": lambda x: torch.minimum(x[:, 0], x[:, 1]),
    "maximum that broadcasts": lambda x: torch.maximum(x, x.mean(1, keepdim=True)),
    "maximum with a constant": lambda x: torch.maximum(x, PLANE),
    "minimum with a constant": lambda x: torch.min(x, PLANE),
    "MaxMin": centred(max_min),
    "GroupSort": centred(group_sort),
    "sort of pairs": centred(lambda x: x.unflatten(1, (-1, 2)).sort(2).values),
    "sort of pairs in falling order": centred(lambda x: torch.sort(x.unflatten(3, (2, -1)), 3, descending=True)[0]),
    "amin": lambda x: x.amin((2, 3)),
    "min along an axis": lambda x: x.min(2).values,
    "clamp with tensors": lambda x: x.clamp(PLANE - 1, PLANE + 0.2),
    "clamp with one tensor": lambda x: torch.clamp(x, min=PLANE),
    "where": lambda x: torch.where(MASK, x, 2 * x.flip(3)),
    "where with a number": lambda x: torch.where(MASK, x, 0.5),
    "where with a tensor": lambda x: torch.where(MASK, PLANE, x),
    "masked fill": lambda x: x.masked_fill(MASK, -0.25),
    "erf": centred(torch.erf),
    "erfc": centred(torch.erfc),
    "sin": centred(torch.sin),
    "cos": centred(torch.cos),
    "var": lambda x: x.var((2, 3)),
    "var of all": lambda x: x.var(3, correction=0, keepdim=True),
    "std": lambda x: x.std(2),
    "norm": lambda x: x.norm(dim=(2, 3)),
    "norm 1": lambda x: x.norm(p=1, dim=2),
    "norm ∞": lambda x: torch.linalg.vector_norm(x, math.inf, (2, 3)),
    "norm 3": lambda x: torch.linalg.vector_norm(x + 0.1, 3, 2),
    "normalize": lambda x: F.normalize(x, dim=1),
    "cosine similarity": lambda x: F.cosine_similarity(x, PLANE.expand_as(x), dim=2),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 5, -1, -1),
    "expand a new axis": lambda x: x.mean((1, 2))[:, None, None].expand(-1, 3, 2, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat interleave": lambda x: x.repeat_interleave(3, 2),
    "stack": lambda x: torch.stack([x[:, 0], x[:, 1], x[:, 0]], 2),
    "flip": lambda x: x.flip(2, 3),
    "roll": lambda x: torch.roll(x, (1, -3), (2, 3)),
    "index": lambda x: x[:, :, INDEX],
    "index select": lambda x: x.index_select(3, INDEX),
    "cumsum": lambda x: x.cumsum(2),
    "tril": lambda x: x.tril(1),
    "add of other ranks": lambda x: (x.permute(1, 0, 2, 3) * x[:, 0] + x[:, 1]).transpose(0, 1),
    "einsum": lambda x: torch.einsum("ncij,ncik->ncjk", x, x),
    "einsum with a constant": lambda x: torch.einsum("ncij,cik->nkj", x, PLANE),
    "einsum of one": lambda x: torch.einsum("ncij->njc", x),
    "einsum of the batch alone": lambda x: torch.einsum("ncij,ncij->n", x, 1 - x)[:, None],
    "bmm": lambda x: torch.bmm(x[:, 0], x[:, 1].transpose(1, 2)),
    "matmul with a constant left": lambda x: PLANE @ x,
    "matmul with a constant right": lambda x: x @ PLANE,
    "matmul with a matrix": lambda x: x @ PLANE[0],
    "matmul with a vector": lambda x: x @ PLANE[0, 0],
    "attention": lambda x: F.scaled_dot_product_attention(x, 2 * x, x.flip(2)),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "masked attention": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=MASK | torch.eye(8).bool()),
    "multi-head attention": Attention(batch_first=True),
    "multi-head attention, batch second": Attention(),
    "transformer layer": nn.Sequential(
        nn.Flatten(1, 2), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True).double()
    ),
    "class token": ClassToken(),
    "windows in the batch": Windows(),
    "conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 5, 2, 1, dilation=2)),
    "conv3d": nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, (2, 3, 3), (1, 2, 1), (1, 0, 1))),
    "transposed convolution": nn.ConvTranspose2d(2, 4, 3, 2, 1, output_padding=1, groups=2),
    "transposed 1-d convolution": nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(2, 3, 4, 2)),
    "transposed 3-d convolution": nn.Sequential(nn.Unflatten(1, (1, 2)), nn.ConvTranspose3d(1, 2, 2)),
    **{
        f"padding {mode}": nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode=mode)
        for mode in ("zeros", "reflect", "replicate", "circular")
    },
    "padding of a value": lambda x: F.pad(x, (1, 2, 0, 1), value=0.7),
    "padding same": nn.Conv2d(2, 3, (3, 5), padding="same"),
    "padding same, even": nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)),
    "padding valid": nn.Conv2d(2, 3, 3, padding="valid"),
    "padding same of conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 4, padding="same")),
    "average pool": nn.AvgPool2d((2, 3), (1, 2), (1, 0)),
    "average pool 1d": nn.Sequential(nn.Flatten(2), nn.AvgPool1d(3, 2)),
    "average pool 3d": nn.Sequential(nn.Unflatten(1, (1, 2)), nn.AvgPool3d(2)),
    "max pool": nn.MaxPool2d((2, 3), (1, 2), (1, 0)),
    "max pool 1d": nn.Sequential(nn.Flatten(2), nn.MaxPool1d(3, 2, 1)),
    "max pool 3d": nn.Sequential(nn.Unflatten(1, (1, 2)), nn.MaxPool3d((2, 3, 2), (1, 2, 2))),
    "adaptive average": nn.AdaptiveAvgPool2d((3, 5)),
    "adaptive max": nn.AdaptiveMaxPool2d((2, 4)),
    "adaptive max of all": nn.AdaptiveMaxPool2d(1),
    "nearest": nn.Upsample(scale_factor=2),
    "nearest to a size": lambda x: F.interpolate(x, (5, 11)),
    "nearest exact": lambda x: F.interpolate(x, (5, 11), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear", align_corners=False),
    "bilinear, corners aligned": lambda x: F.interpolate(x, (5, 12), mode="bilinear", align_corners=True),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.reshape(-1, 8, 4, 4), 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unfold": nn.Unfold(3, padding=1, stride=2),
    "channel shuffle": lambda x: F.channel_shuffle(torch.cat([x, 2 * x], 1), 2),
    "logaddexp": lambda x: torch.logaddexp(x[:, 0], x[:, 1]),
    "lerp": lambda x: torch.lerp(x, x.flip(2), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x.flip(2), PLANE, value=0.3),
    "addcdiv": lambda x: torch.addcdiv(x, x.flip(2), PLANE.abs() + 1, value=0.3),
    "split": lambda x: torch.cat([x.split([3, 5], 2)[1], x.split(6, 2)[1]], 2),
    "zeros like": lambda x: torch.cat([torch.zeros_like(x), x, x.new_ones(x.shape)], 1),
}
# Functions whose bounds may be infinite, with where that is.
JUMPING = ("hard-shrink", "threshold", "sign", "softplus")
# One of every operation whose derivative is bounded in a way of its own.
DIFFERENTIATED = (
    "layer norm", "PReLU", "CELU", "mish", "GELU by tanh", "log-sigmoid", "hard-shrink", "threshold", "softplus", "x·x", "cube",
    "power 1.5", "power −2", "sqrt", "rsqrt", "log", "division of activations", "maximum", "maximum that broadcasts",
    "maximum with a constant", "MaxMin", "clamp with tensors", "where", "erf", "sin", "cos", "std", "expand", "index",
    "einsum", "matmul with a constant left", "attention", "class token", "conv1d", "conv3d", "transposed convolution",
    "padding reflect", "adaptive average", "bilinear",
)  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Applied(CASES[name]).double().eval().requires_grad_(False)


GROUPS = [list(CASES)[start : start + 6] for start in range(0, len(CASES), 6)]


@pytest.mark.parametrize("names", every_is_quick(8, GROUPS), ids=" + ".join)
def test_bounds_hold(names: Sequence[str]) -> None:
    model, x = Together(map(made, names)), images()
    graph = capture(model, x)
    exact = model(x)
    assert not failing(names, torch.isclose(graph(x), exact, rtol=1e-9, atol=1e-11))
    points = sampled(x, EPS, math.inf, 200)
    values = model(points.flatten(0, 1)).view(200, len(x), -1)
    for method in ("interval", "crown"):
        found = bound(graph, LpBall(x, EPS), method)
        assert not failing(names, found.lower <= values.amin(0) + 1e-9), method
        assert not failing(names, found.upper >= values.amax(0) - 1e-9), method
        assert not failing(names, found.width.isfinite()), method
    # A point gives the value: what is loose is not the translation.
    point = bound(graph, LpBall(x, 0.0), "interval")
    assert not failing(names, torch.isclose(point.lower, exact, rtol=1e-6, atol=1e-6))
    assert not failing(names, torch.isclose(point.upper, exact, rtol=1e-6, atol=1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients_hold(name: str) -> None:
    model, x = made(name), images()
    points = sampled(x, EPS / 4, math.inf, 60).flatten(0, 1).requires_grad_()
    (slopes,) = torch.autograd.grad(Energy()(model(points)).sum(), points)
    slopes = slopes.view(60, *x.shape)
    found = gradient_bound(capture(model, x), LpBall(x, EPS / 4), score=Energy(), method="interval")
    assert (found.lower <= slopes.amin(0) + 1e-9).all()
    assert (found.upper >= slopes.amax(0) - 1e-9).all()
    assert name in JUMPING or found.dual_norm.isfinite().all()


@pytest.mark.parametrize(
    ("function", "finite"),
    [
        (lambda x: 1 / (x - 0.5), False),
        (lambda x: torch.log(x - 0.5), False),
        (lambda x: torch.sqrt(x - 0.5), False),
        (lambda x: torch.rsqrt(x - 0.5), False),
        (lambda x: (x - 0.5) ** 1.5, False),
        (lambda x: (x - 0.5) ** -2, False),
        (lambda x: 1 / (x + 0.5), True),
    ],
)
def test_where_a_function_has_no_bound_there_is_none(function: Callable[[Tensor], Tensor], finite: bool) -> None:
    x = torch.full((1, 2, 8, 8), 0.5, dtype=torch.float64)
    graph = capture(Applied(function), x)
    for method in ("interval", "crown"):
        found = bound(graph, LpBall(x, 0.1), method)
        assert not found.lower.isnan().any()
        assert found.width.isfinite().all() == finite
        if not finite:
            assert (found.lower == -math.inf).all()
            assert (found.upper == math.inf).all()


def test_supported_operations_name_decomposed_ones() -> None:
    assert {"layer_norm", "einsum", "conv2d", "softplus"} <= set(supported_operations())
    for name in DECOMPOSITIONS:
        assert hasattr(torch.ops.aten, name), name


def test_what_torch_would_mix_is_refused() -> None:
    with pytest.raises(CannotCertify):
        capture(Applied(lambda x: x + x.flip(0)), images())
    with pytest.raises(CannotCertify):
        capture(Applied(lambda x: x.reshape(-1, 4, 8, 8).repeat(2, 1, 1, 1)), images())
