"""Batch normalisation twice in a step, where the second forward takes the first one's statistics, and with fixed ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from certood.errors import CertoodError

Statistics = dict[_BatchNorm, list[Tensor]]


@contextmanager
def recorded_statistics(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """While entered, the input of every call of a batch normalisation in train mode is added.

    Statistics are computed of it in the second forward, so that a step whose gates are closed pays nothing. They stay in
    the autograd graph: a finite difference subtracts the scores of two forwards, and the statistics'
    dependence on the weights must cancel between them, or it would remain divided by the small step.
    """

    def record(module: _BatchNorm, inputs: tuple[Any, ...]) -> None:
        statistics.setdefault(module, []).append(inputs[0])

    hooks = []
    for part in model.modules():
        if isinstance(part, nn.SyncBatchNorm):
            raise CertoodError(
                "a finite difference cannot repeat the statistics of SyncBatchNorm, which span processes; "
                "use gradient.mode = 'exact' or BatchNorm"
            )
        if not isinstance(part, _BatchNorm) or not part.training:
            continue
        if type(part).forward is not _BatchNorm.forward or "forward" in vars(part):
            raise CertoodError(
                f"a finite difference cannot repeat what a {type(part).__name__} adds to batch normalisation; "
                "use gradient.mode = 'exact'"
            )
        hooks.append(part.register_forward_pre_hook(record))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def fixed_statistics(statistics: Statistics) -> Iterator[None]:
    """While entered, these batch normalisations use the recorded statistics, call by call, and update nothing."""

    def normalised(module: _BatchNorm, calls: Iterator[Tensor], x: Tensor) -> Tensor:
        mean, variance = _moments(next(calls))
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = torch.rsqrt(variance + module.eps)
        offset = -mean * scale
        if module.affine:
            offset = offset * module.weight + module.bias
            scale = scale * module.weight
        return x * scale.view(shape) + offset.view(shape)

    for module, calls in statistics.items():
        # An attribute of the instance hides the method of its class until it is deleted below.
        vars(module)["forward"] = partial(normalised, module, iter(calls))
    try:
        yield
    finally:
        for module in statistics:
            del vars(module)["forward"]


def fix_statistics(model: nn.Module) -> None:
    """Batch normalisations keep their statistics from now on, whatever mode the network is put into."""
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
            # An attribute of the instance hides the method of its class.
            vars(part)["train"] = partial(_left_as_it_is, part)


def _left_as_it_is(module: _BatchNorm, mode: bool = True) -> _BatchNorm:
    return module


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, in the graph, in two passes that run faster than `torch.var_mean` on a CPU.

    Centring on a constant leaves value and gradient of the variance as they are: (m − m.detach())² adds zero to both, but
    for the part of the gradient that the constant took away.
    """
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(axes)
    fixed = mean.detach()
    centred = x - fixed.view(1, -1, *[1] * (x.ndim - 2))
    return mean, centred.square().mean(axes) - (mean - fixed).square()
