"""Activation functions, and arithmetic of activations and constants."""

from collections.abc import Callable

import torch
from torch import Tensor

from certood.analysis.bounds.calls import Call, Reference
from certood.analysis.bounds.operations import (
    Activation,
    ChannelAffine,
    Operation,
    Product,
    WeightedSum,
    activations,
    bends,
    jumps,
    periodic,
    powers,
)
from certood.analysis.bounds.operations.pairwise_maximum import PairwiseMaximum
from certood.analysis.bounds.translation.table import TRANSLATORS, Translator, translates


def _fixed(activation: Activation) -> Translator:
    return lambda call: activation


TRANSLATORS |= {
    "relu": _fixed(activations.RELU),
    "sigmoid": _fixed(activations.SIGMOID),
    "tanh": _fixed(activations.TANH),
    "silu": _fixed(activations.SILU),
    "exp": _fixed(activations.EXP),
    "abs": _fixed(activations.ABS),
    "hardsigmoid": _fixed(activations.HARDSIGMOID),
    "hardswish": _fixed(activations.HARDSWISH),
    "relu6": _fixed(activations.clamp(0.0, 6.0)),
    "square": _fixed(powers.SQUARE),
    "sqrt": _fixed(powers.SQRT),
    "rsqrt": _fixed(powers.RSQRT),
    "log": _fixed(powers.LOG),
    "reciprocal": _fixed(powers.RECIPROCAL),
    "erf": _fixed(bends.ERF),
    "mish": _fixed(bends.MISH),
    "sin": _fixed(periodic.SIN),
    "cos": _fixed(periodic.COS),
    "sign": _fixed(jumps.SIGN),
}


@translates("gelu")
def gelu(call: Call) -> Operation:
    """Exact, or by the hyperbolic tangent."""
    return activations.GELU if call.argument("approximate") == "none" else bends.GELU_TANH


@translates("leaky_relu")
def leaky_relu(call: Call) -> Operation | Reference:
    """Translate a slope in [0, 1]; any other is made of two ReLUs."""
    slope = float(call.argument("negative_slope"))
    if 0 <= slope <= 1:
        return activations.leaky_relu(slope)
    negated = call.append(ChannelAffine(call.tensor(-1.0), call.tensor(0.0)), [call.source])
    parts = [call.append(activations.RELU, [part]) for part in (call.source, negated)]
    return call.append(WeightedSum(1.0, -slope), parts)


@translates("elu")
def elu(call: Call) -> Operation:
    """Others are decomposed."""
    alpha, scale, input_scale = (float(call.argument(name)) for name in ("alpha", "scale", "input_scale"))
    if not 0 < alpha <= 1 or scale != 1 or input_scale != 1:
        raise call.refusal("with alpha above 1 or scaled")
    return activations.elu(alpha)


def _clamp(low: str, high: str) -> Translator:
    def translate(call: Call) -> Operation:
        ends = [call.optional(name) for name in (low, high)]
        if any(isinstance(end, (Tensor, Reference)) for end in ends):
            raise call.refusal("with a tensor as a limit")
        without = -torch.inf, torch.inf
        return activations.clamp(*(far if end is None else float(end) for end, far in zip(ends, without, strict=True)))

    return translate


translates("clamp", "clip", "clamp_min", "clamp_max")(_clamp("min", "max"))
translates("hardtanh")(_clamp("min_val", "max_val"))


@translates("softplus")
def softplus(call: Call) -> Operation:
    """Translate softplus with its linear cut-off."""
    beta, threshold = float(call.argument("beta")), float(call.argument("threshold"))
    if beta <= 0:
        raise call.refusal(f"with beta={beta} (above 0 is)")
    return activations.softplus(beta, threshold)


@translates("hardshrink")
def hardshrink(call: Call) -> Operation:
    """It jumps at ±λ."""
    return jumps.hardshrink(float(call.argument("lambd")))


@translates("threshold")
def threshold(call: Call) -> Operation:
    """It may jump at the threshold."""
    return jumps.threshold(float(call.argument("threshold")), float(call.argument("value")))


@translates("pow")
def power(call: Call) -> Operation:
    """A constant positive exponent; others are decomposed."""
    exponent = call.argument("exponent")
    if not isinstance(exponent, (int, float)) or exponent <= 0 or not isinstance(call.arguments["self"], Reference):
        raise call.refusal("unless its exponent is a number")
    return powers.power(float(exponent))


def _scaled(call: Call, scale: Tensor | float, shift: Tensor | float) -> Operation:
    return ChannelAffine(call.tensor(scale), call.tensor(shift))


def _sum(first: float, second: float) -> Translator:
    def translate(call: Call) -> Operation:
        one, two = call.argument("self"), call.argument("other")
        alpha = float(call.argument("alpha"))
        # alpha multiplies `other`, and `self` of a reversed difference.
        factors = (first * alpha, second) if first < 0 else (first, second * alpha)
        if isinstance(one, Reference) and isinstance(two, Reference):
            return WeightedSum(*factors)
        if isinstance(one, Reference):
            return _scaled(call, factors[0], factors[1] * call.operand("other"))
        return _scaled(call, factors[1], factors[0] * call.operand("self"))

    return translate


translates("add")(_sum(1.0, 1.0))
translates("sub")(_sum(1.0, -1.0))
translates("rsub")(_sum(-1.0, 1.0))


@translates("mul")
def multiplication(call: Call) -> Operation | Reference:
    """By a constant, by another activation, or of an activation with itself."""
    one, two = call.argument("self"), call.argument("other")
    if isinstance(one, Reference) and isinstance(two, Reference):
        return call.append(powers.SQUARE, [one]) if one == two else Product()
    return _scaled(call, call.operand("other" if isinstance(one, Reference) else "self"), 0.0)


@translates("div")
def division(call: Call) -> Operation:
    """Translate division by a number; others are decomposed."""
    if call.optional("rounding_mode") is not None:
        raise call.refusal(f"with rounding_mode={call.arguments['rounding_mode']!r}")
    return _scaled(call, 1 / call.operand("other"), 0.0)


@translates("neg")
def negation(call: Call) -> Operation:
    """−x."""
    return _scaled(call, -1.0, 0.0)


@translates("maximum")
def maximum(call: Call) -> Operation | Reference:
    """Translate the maximum of two activations; with a constant c it is relu(x − c) + c."""
    one, two = call.argument("self"), call.argument("other")
    if isinstance(one, Reference) and isinstance(two, Reference):
        return PairwiseMaximum()
    constant = call.operand("other" if isinstance(one, Reference) else "self")
    above = call.append(_scaled(call, 1.0, -constant), [call.source])
    return call.append(_scaled(call, 1.0, constant), [call.append(activations.RELU, [above])])


@translates("where")
def where(call: Call) -> Operation | Reference:
    """A constant condition: of each the share that it chooses."""
    condition = call.argument("condition")
    if isinstance(condition, Reference):
        raise call.refusal("with a condition that depends on the image")
    mask = call.layout.constant(condition)
    chosen: list[Callable[[Tensor | float], Tensor]] = [
        lambda value: torch.where(mask, call.tensor(value), call.tensor(0.0)),
        lambda value: torch.where(mask, call.tensor(0.0), call.tensor(value)),
    ]
    names = ("self", "other")
    given = [call.argument(name) for name in names]
    if all(isinstance(part, Reference) for part in given):
        parts = [call.append(_scaled(call, pick(1.0), 0.0), [part]) for pick, part in zip(chosen, given, strict=True)]
        return call.append(WeightedSum(1.0, 1.0), parts)
    image = 0 if isinstance(given[0], Reference) else 1
    return _scaled(call, chosen[image](1.0), chosen[1 - image](call.operand(names[1 - image])))
