"""Devices by name."""

import itertools
from typing import Literal

import torch
from torch import nn

from certood.errors import DeviceError

# Lightning Fabric's names of the arithmetic of training.
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def resolve_device(name: str) -> torch.device:
    """The device called auto, cpu, cuda, cuda:N or mps; raises DeviceError where this machine has it not."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} was asked for, but this machine has {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but this machine has none; use cpu or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name!r} is not supported; expected auto, cpu, cuda, cuda:N or mps")
    return device


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of a module are, or its buffers; the CPU where it has none."""
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def require_float64(device: torch.device) -> None:
    """Raise DeviceError for a device without float64, in which certificates are computed."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise DeviceError(
            f"certificates are computed in float64, which device {str(device)!r} does not have; use cpu or cuda"
        ) from error


def short_products(device: torch.device) -> str:
    """What of a device is fast at products of bfloat16, in words; empty where nothing is."""
    if device.type == "cuda":
        return "GPU with bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    if device.type != "cpu":
        return ""
    offers = (("AMX", "_is_amx_tile_supported"), ("AVX-512 BF16", "_is_avx512_bf16_supported"))
    found = [name for name, test in offers if getattr(torch.cpu, test, bool)()]
    return f"processor with {found[0]}" if found else ""


def chosen_precision(precision: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """The precision of training, for "auto" what is fast on the device: mixed bfloat16, or 32 bits.

    Raises DeviceError for bfloat16 on a device that has no products of it, where it is slower than 32 bits, and for float16 on
    a processor, where Fabric would take bfloat16 for it.
    """
    fast = short_products(device)
    if precision == "auto":
        return "bf16-mixed" if fast else "32-true"
    if precision == "bf16-mixed" and not fast:
        raise DeviceError(
            f"run.precision is {precision!r}, and this {device.type} device has no fast products of bfloat16: use '32-true', or "
            "'auto'"
        )
    if precision == "16-mixed" and device.type == "cpu":
        raise DeviceError(
            "run.precision is '16-mixed', and float16 is for GPUs: use 'bf16-mixed', '32-true', or 'auto'"
        )
    return precision
