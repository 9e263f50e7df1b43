"""Normalisations: with stored statistics, and with those of the image itself."""

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.onnx.calls import Call, operator


@operator("BatchNormalization")
def batch_normalization(call: Call) -> Tensor:
    """(x − mean) / √(variance + epsilon) · scale + bias with stored statistics."""
    x, scale, bias, mean, variance = (call.tensor(index) for index in range(5))
    call.attribute("momentum", 0.9)
    call.expect("training_mode", 0)
    call.expect("spatial", 1)
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.attribute("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_normalization(call: Call) -> Tensor:
    """Each plane normalised by its own mean and variance, then scaled and shifted by channel."""
    x, scale, bias = (call.tensor(index) for index in range(3))
    return F.group_norm(x, int(x.shape[1]), scale, bias, call.attribute("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(call: Call) -> Tensor:
    """Groups of channels normalised by their own mean and variance; scaled by group before operator set 21, by channel since."""
    x, scale, bias = (call.tensor(index) for index in range(3))
    groups, epsilon = call.required("num_groups"), call.attribute("epsilon", 1e-5)
    call.attribute("stash_type", 1)
    if call.version < 21:
        each = int(x.shape[1]) // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, groups, scale, bias, epsilon)


@operator("LayerNormalization")
def layer_normalization(call: Call) -> Tensor:
    """The axes from `axis` on normalised together, then scaled and shifted."""
    x, scale, bias = call.tensor(0), call.tensor(1), call.optional(2)
    axis, epsilon = call.attribute("axis", -1), call.attribute("epsilon", 1e-5)
    call.attribute("stash_type", 1)
    shape = [int(size) for size in x.shape[axis % x.ndim :]]
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    found = F.layer_norm(x, shape, None, None, epsilon) * scale
    return found if bias is None else found + bias


@operator("RMSNormalization")
def rms_normalization(call: Call) -> Tensor:
    """The axes from `axis` on divided by the root of their mean square, then scaled."""
    x, scale = call.tensor(0), call.tensor(1)
    axis, epsilon = call.attribute("axis", -1), call.attribute("epsilon", 1e-5)
    call.attribute("stash_type", 1)
    axes = list(range(axis % x.ndim, x.ndim))
    return torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * x * scale


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call) -> Tensor:
    """(x − mean) / (√variance + 1e-9) over axes, which are those of the images and planes unless given."""
    x, axes = call.tensor(0), call.attribute("axes", [0, 2, 3])
    if 0 in [axis % x.ndim for axis in axes]:
        raise call.node.error("it normalises over the axis of the images, which it may not mix; give `axes` without 0")
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)
