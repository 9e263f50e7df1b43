"""Whether products are computed in the precision that bounds are in: what the environment may have lowered."""

import os

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.errors import CertoodError

# oneDNN reads these when it is first used.
ENVIRONMENT = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


def check_precision(dtype: torch.dtype, device: torch.device) -> None:
    """Raise CertoodError for a precision in which bounds cannot be computed soundly there, or an environment that lowers it."""
    if dtype not in (torch.float64, torch.float32):
        raise CertoodError(f"bounds are computed in float64 or float32, not {dtype}")
    if dtype == torch.float64:
        return
    products = torch.get_float32_matmul_precision()
    if products != "highest":
        raise CertoodError(
            "float32 bounds need products in full precision: torch.set_float32_matmul_precision('highest'), which is now "
            f"{products!r}"
        )
    for name in ENVIRONMENT:
        mode = os.environ.get(name, "STRICT")
        if mode.upper() != "STRICT":
            raise CertoodError(
                f"float32 bounds need full precision: the environment sets {name}={mode}; unset it and start again"
            )
    for name in ("", "conv", "matmul"):
        # Newer versions of torch can also ask oneDNN for less.
        backend = torch.backends.mkldnn if not name else getattr(torch.backends.mkldnn, name, None)
        precision = getattr(backend, "fp32_precision", "none")
        if precision not in ("none", "ieee"):
            where = ".".join(part for part in ("mkldnn", name, "fp32_precision") if part)
            raise CertoodError(
                f"float32 bounds need full precision: torch.backends.{where} = 'ieee', which is now {precision!r}"
            )
    _check_products(device)


def in_full_precision(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether bounds can be computed soundly in this precision there."""
    try:
        check_precision(dtype, device)
    except CertoodError:
        return False
    return True


def _check_products(device: torch.device) -> None:
    """Raise CertoodError where products of float32 on a device lose digits, whatever makes them."""
    # 1 + 2⁻¹² has more digits than bfloat16, half precision and TF32 hold.
    value = 1 + 2.0**-12
    rows, unit = torch.full((32, 64), value, device=device), torch.eye(64, device=device)
    found = _product(rows, unit), F.conv2d(rows.view(1, 32, 8, 8), unit[:32, :32, None, None])
    if any(bool((part != value).any()) for part in found):
        raise CertoodError(
            "float32 bounds need full precision, but products of float32 lose digits here: something lowers the precision of "
            "matrix products or convolutions; use float64"
        )


def _product(one: Tensor, two: Tensor) -> Tensor:
    return one @ two
