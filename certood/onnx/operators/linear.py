"""Products of matrices."""

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.onnx.calls import Call, operator


@operator("Gemm")
def gemm(call: Call) -> Tensor:
    """alpha · A B + beta · C, each factor transposed first where asked for."""
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    a = a.T if call.attribute("transA", 0) else a
    weight = b if call.attribute("transB", 0) else b.T
    weight = weight if alpha == 1 else alpha * weight
    if c is None:
        return F.linear(a, weight)
    c = c if beta == 1 else beta * c
    if c.numel() == weight.shape[0] and (c.ndim == 1 or (c.ndim == 2 and c.shape[0] == 1)):
        return F.linear(a, weight, c.reshape(-1))
    return F.linear(a, weight) + c


@operator("MatMul")
def matrix_product(call: Call) -> Tensor:
    """The product of matrices in the last two axes; a matrix on the right is a linear layer."""
    a, b = call.tensor(0), call.tensor(1)
    return F.linear(a, b.T) if b.ndim == 2 and a.ndim > 1 else torch.matmul(a, b)


@operator("Einsum")
def einstein_sum(call: Call) -> Tensor:
    """The sum of products that an equation describes."""
    return torch.einsum(call.required("equation").replace(" ", ""), *call.tensors())
