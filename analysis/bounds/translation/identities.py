"""What changes nothing, and casts, which may."""

import torch
from torch import Tensor

from certood.analysis.bounds.calls import Call, Reference
from certood.analysis.bounds.translation.table import translates


@translates("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh")
def identity(call: Call) -> Reference:
    """Pass on the input: the value is the same, whatever its strides."""
    call.ignored("memory_format")
    return call.source


@translates("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
def dropout(call: Call) -> Reference:
    """Pass on the input, unless dropout is switched on."""
    call.ignored("p")
    if call.argument("train"):
        raise call.refusal("in train mode, where its value is random")
    return call.source


@translates("_to_copy", "to", "type_as")
def cast(call: Call) -> Reference:
    """A change of precision, device or strides, none of which exists here; a change of values is refused."""
    call.ignored("memory_format", "layout", "device", "pin_memory", "non_blocking", "copy")
    wanted = call.optional("dtype")
    if isinstance(call.optional("other"), Tensor):
        wanted = call.arguments["other"].dtype
    if wanted not in (None, torch.float64):
        raise call.refusal(f"as a cast of an activation to {wanted}, which changes its value")
    return call.source
