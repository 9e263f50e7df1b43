"""Batch normalisation twice in a step: the second forward is normalised with the first one's batch statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from certood.errors import CertoodError

Statistics = dict[_BatchNorm, list[tuple[Tensor, Tensor]]]


@contextmanager
def recorded_statistics(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """While entered, the batch mean and biased variance of every call of a batch normalisation in train mode is added.

    They stay in the autograd graph: a finite difference subtracts the scores of two forwards, and the statistics'
    dependence on the weights must cancel between them, or it would remain divided by the small step.
    """

    def record(module: _BatchNorm, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].float() if inputs[0].dtype in (torch.bfloat16, torch.float16) else inputs[0]
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x, axes, correction=0)
        statistics.setdefault(module, []).append((mean, variance))

    hooks = []
    for part in model.modules():
        if isinstance(part, nn.SyncBatchNorm):
            raise CertoodError(
                "a finite difference cannot repeat the statistics of SyncBatchNorm, which span processes; "
                "use gradient.mode = 'exact' or BatchNorm"
            )
        if isinstance(part, _BatchNorm) and part.training:
            hooks.append(part.register_forward_pre_hook(record))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def fixed_statistics(statistics: Statistics) -> Iterator[None]:
    """While entered, these batch normalisations use the recorded statistics, call by call, and update nothing."""

    def normalised(module: _BatchNorm, calls: Iterator[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        mean, variance = next(calls)
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
