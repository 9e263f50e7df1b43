"""Random programs: compositions of supported operations with random legal arguments, as modules."""

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[[Tensor], Tensor]
# What a step makes for values of a shape (without the batch): a function, or None where it has none.
Maker = Callable[["Draw", Sequence[int]], Function | None]
LARGEST = 512


class Draw:
    """Random numbers and tensors of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def whole(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def real(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    def axis(self, shape: Sequence[int]) -> int:
        """An axis of a sample, counted with the batch."""
        return self.whole(1, len(shape))


def always(function: Function) -> Maker:
    return lambda draw, shape: function


def drawn(*ranges: tuple[float, float], of: Callable[..., Tensor]) -> Maker:
    """A function of a tensor and numbers from these ranges."""

    def make(draw: Draw, shape: Sequence[int]) -> Function:
        numbers = [draw.real(*ends) for ends in ranges]
        return lambda x: of(x, *numbers)

    return make


def along(of: Callable[[Tensor, int], Tensor]) -> Maker:
    """A function of a tensor and an axis of it."""

    def make(draw: Draw, shape: Sequence[int]) -> Function:
        axis = draw.axis(shape)
        return lambda x: of(x, axis)

    return make


def planes(make: Maker) -> Maker:
    """For values (C, H, W) of at least 2 × 2."""
    return lambda draw, shape: make(draw, shape) if len(shape) == 3 and min(shape[1:]) >= 2 else None


def with_constant(of: Callable[[Tensor, Tensor], Tensor]) -> Maker:
    """A function of a tensor and a constant that broadcasts against it."""

    def make(draw: Draw, shape: Sequence[int]) -> Function:
        constant = draw.normal(*(size if draw.whole(0, 1) else 1 for size in shape))
        return lambda x: of(x, constant)

    return make


def convolution(draw: Draw, shape: Sequence[int]) -> Function | None:
    kernel = [draw.whole(1, min(3, size)) for size in shape[1:]]
    groups = draw.random.choice([size for size in range(1, shape[0] + 1) if shape[0] % size == 0])
    weight, bias = draw.normal(2 * groups, shape[0] // groups, *kernel), draw.normal(2 * groups)
    if draw.whole(0, 2) == 0:
        return lambda x: F.conv2d(x, weight, bias, padding="same", groups=groups)
    stride, padding = draw.whole(1, 2), [draw.whole(0, 1), draw.whole(0, 1)]
    return lambda x: F.conv2d(x, weight, bias, stride, padding, 1, groups)


def transposed_convolution(draw: Draw, shape: Sequence[int]) -> Function | None:
    weight, stride = draw.normal(shape[0], 2, draw.whole(1, 3), draw.whole(1, 3)), draw.whole(1, 2)
    return lambda x: F.conv_transpose2d(x, weight, None, stride)


def pool(draw: Draw, shape: Sequence[int]) -> Function | None:
    kernel, stride = [draw.whole(1, 2), 2], [draw.whole(1, 2), draw.whole(1, 2)]
    kind, ceil = draw.random.choice([F.max_pool2d, F.avg_pool2d]), bool(draw.whole(0, 1))
    return lambda x: kind(x, kernel, stride, ceil_mode=ceil)


def linear(draw: Draw, shape: Sequence[int]) -> Function | None:
    weight, bias = draw.normal(4, shape[-1]), draw.normal(4)
    return lambda x: F.linear(x, weight, bias)


def normalised(draw: Draw, shape: Sequence[int]) -> Function | None:
    weight, bias, eps = draw.normal(shape[-1]), draw.normal(shape[-1]), draw.real(0.01, 0.3)
    return lambda x: F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def permuted(draw: Draw, shape: Sequence[int]) -> Function | None:
    order = draw.random.sample(range(1, len(shape) + 1), len(shape))
    return lambda x: x.permute(0, *order)


def indexed(draw: Draw, shape: Sequence[int]) -> Function | None:
    axis = draw.axis(shape)
    index = torch.tensor([draw.whole(0, shape[axis - 1] - 1) for _ in range(3)])
    return lambda x: x.index_select(axis, index)


def padded(draw: Draw, shape: Sequence[int]) -> Function | None:
    mode, sizes = (
        draw.random.choice(["constant", "reflect", "replicate", "circular"]),
        [draw.whole(0, 1) for _ in range(4)],
    )
    value = draw.real(-1, 1) if mode == "constant" else None
    return lambda x: F.pad(x, sizes, mode, value)


def resampled(draw: Draw, shape: Sequence[int]) -> Function | None:
    size, mode = (draw.whole(2, 6), draw.whole(2, 6)), draw.random.choice(["nearest", "bilinear", "nearest-exact"])
    return lambda x: F.interpolate(x, size, mode=mode)


def folded(draw: Draw, shape: Sequence[int]) -> Function | None:
    """An axis into the batch, a map of what is left, and out of it again."""
    if len(shape) < 2:
        return None
    matrix = draw.normal(shape[-1], shape[-1])
    return lambda x: (x.flatten(0, 1) @ matrix).softmax(-1).reshape(x.shape)


def attention(draw: Draw, shape: Sequence[int]) -> Function | None:
    if len(shape) < 2:
        return None
    query, causal = draw.normal(shape[-1], shape[-1]), bool(draw.whole(0, 1))
    return lambda x: F.scaled_dot_product_attention(x @ query, x, x.flip(-2), is_causal=causal)


def masked(draw: Draw, shape: Sequence[int]) -> Function | None:
    mask = draw.normal(*shape) > 0
    return lambda x: torch.where(mask, x, x.flip(-1))


def gelu(draw: Draw, shape: Sequence[int]) -> Function | None:
    kind = draw.random.choice(["none", "tanh"])
    return lambda x: F.gelu(x, approximate=kind)


def whole_power(draw: Draw, shape: Sequence[int]) -> Function | None:
    exponent = draw.whole(2, 5)
    return lambda x: x**exponent


def prelu(draw: Draw, shape: Sequence[int]) -> Function | None:
    weight = draw.normal(shape[0])
    return lambda x: F.prelu(x, weight)


STEPS: dict[str, Maker] = {
    **{
        name: always(getattr(F, name))
        for name in (
            "relu",
            "silu",
            "mish",
            "selu",
            "logsigmoid",
            "softsign",
            "tanhshrink",
            "hardswish",
            "hardsigmoid",
            "relu6",
        )
    },
    **{
        name: always(getattr(torch, name))
        for name in ("sigmoid", "tanh", "abs", "exp", "erf", "sin", "cos", "square", "neg")
    },
    "gelu": gelu,
    "elu": drawn((0.1, 3), of=F.elu),
    "celu": drawn((0.1, 3), of=F.celu),
    "leaky_relu": drawn((-0.5, 1.5), of=F.leaky_relu),
    "softplus": drawn((0.5, 3), (0.1, 5), of=F.softplus),
    "hardshrink": drawn((0.1, 1), of=F.hardshrink),
    "softshrink": drawn((0.1, 1), of=F.softshrink),
    "threshold": drawn((-1, 1), (-1, 1), of=F.threshold),
    "clamp": drawn((-2, -0.1), (0.1, 2), of=torch.clamp),
    "power": whole_power,
    "root": drawn((0.05, 1), of=lambda x, shift: torch.sqrt(x.square() + shift)),
    "reciprocal": drawn((0.3, 1), of=lambda x, shift: 1 / (x.abs() + shift)),
    "rsqrt": drawn((0.3, 1), of=lambda x, shift: torch.rsqrt(x.square() + shift)),
    "log": drawn((0.3, 1), of=lambda x, shift: torch.log(x.abs() + shift)),
    "real power": drawn((0.3, 2.5), of=lambda x, p: (x.abs() + 0.1) ** p),
    "prelu": prelu,
    "add": with_constant(lambda x, c: torch.add(x, c, alpha=0.5)),
    "subtract": with_constant(lambda x, c: torch.sub(c, x, alpha=0.5)),
    "from a number": drawn((-1, 1), of=lambda x, c: c - x),
    "multiply": with_constant(torch.mul),
    "divide": with_constant(lambda x, c: x / (c.abs() + 0.5)),
    "maximum": with_constant(torch.maximum),
    "minimum": with_constant(torch.minimum),
    "where": masked,
    "product": along(lambda x, axis: x * x.flip(axis)),
    "quotient": along(lambda x, axis: x / (1 + x.flip(axis).abs())),
    "larger": along(lambda x, axis: torch.maximum(x, x.flip(axis))),
    "gated": along(lambda x, axis: x * x.mean(axis, keepdim=True).sigmoid()),
    "shortcut": drawn((-2, 2), of=lambda x, a: x + a * x.tanh()),
    "softmax": along(lambda x, axis: x.softmax(axis)),
    "log_softmax": along(lambda x, axis: x.log_softmax(axis)),
    "logsumexp": along(lambda x, axis: x.logsumexp(axis, keepdim=True)),
    "mean": along(lambda x, axis: x - x.mean(axis, keepdim=True)),
    "largest": along(lambda x, axis: x.amax(axis, keepdim=True)),
    "least": along(lambda x, axis: x.amin(axis, keepdim=True)),
    "norm": along(lambda x, axis: x / (0.5 + x.norm(dim=axis, keepdim=True))),
    "cumsum": along(torch.cumsum),
    "join": along(lambda x, axis: torch.cat([x, 0.5 * x], axis)),
    "join a constant": along(lambda x, axis: torch.cat([x, torch.ones_like(x)], axis)),
    "flip": along(lambda x, axis: x.flip(axis)),
    "roll": along(lambda x, axis: x.roll(1, axis)),
    "repeat": along(lambda x, axis: x.repeat_interleave(2, axis)),
    "layer norm": normalised,
    "linear": linear,
    "permute": permuted,
    "index": indexed,
    "folded": folded,
    "attention": attention,
    "product with itself": lambda draw, shape: None if len(shape) < 2 else lambda x: x @ x.transpose(-1, -2),
    "convolution": planes(convolution),
    "transposed convolution": planes(transposed_convolution),
    "pool": planes(pool),
    "pad": planes(padded),
    "resample": planes(resampled),
}


class Program(nn.Module):
    """Logits (N, 3) by so many random steps, each scaled so that values stay around 1."""

    def __init__(self, seed: int, shape: Sequence[int], length: int) -> None:
        super().__init__()
        draw = Draw(seed)
        self.names: list[str] = []
        self.steps: list[tuple[float, Function]] = []
        x = torch.rand(8, *shape, dtype=torch.float64, generator=draw.generator)
        while len(self.steps) < length:
            name = draw.random.choice(list(STEPS))
            step = STEPS[name](draw, x.shape[1:])
            scale = 2 / float(x.abs().max().clamp_min(1e-3))
            value = None if step is None else step(scale * x)
            if value is None or step is None or value[0].numel() > LARGEST or not value.isfinite().all():
                continue
            self.names.append(name)
            self.steps.append((scale, step))
            x = value
        self.last = draw.normal(3, x[0].numel()) / math.sqrt(x[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        for scale, step in self.steps:
            x = step(scale * x)
        return F.linear(x.flatten(1), self.last)
