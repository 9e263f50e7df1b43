"""Matrix products of all kinds, and attention."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from certood.analysis.bounds.decompositions.elementwise import aligned
from certood.analysis.bounds.decompositions.table import decomposes


@decomposes("matmul")
def matmul(x: Tensor, y: Tensor) -> Any:
    """Tensors with as many axes, at least two; a matrix on the right stays one."""
    if x.ndim == 1:
        return torch.matmul(x[None], y).squeeze(-2)
    if y.ndim == 1:
        return torch.matmul(x, y[:, None]).squeeze(-1)
    both = None if y.ndim == 2 else aligned(x, y)
    return NotImplemented if both is None else torch.matmul(*both)


@decomposes("bmm", "mm", "mv")
def product(x: Tensor, y: Tensor) -> Tensor:
    """A matrix product."""
    return torch.matmul(x, y)


@decomposes("addmm", "baddbmm", "addmv")
def add_product(x: Tensor, y: Tensor, z: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """βx + α·yz."""
    return beta * x + alpha * torch.matmul(y, z)


@decomposes("einsum")
def einsum(equation: str, operands: Sequence[Tensor], *, path: Any = None) -> Any:
    """Of one or two tensors with every letter once in each: a matrix product of axes moved and folded."""
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "..." in equation or "->" not in equation or len(operands) > 2 or any(len(set(t)) < len(t) for t in terms):
        return NotImplemented
    # Letters that only one tensor has and the result has not are summed at once.
    tensors = []
    for place, (term, x) in enumerate(zip(terms, operands, strict=True)):
        others = [letter for at, other in enumerate(terms) if at != place for letter in other]
        alone = [letter for letter in term if letter not in result and letter not in others]
        terms[place] = "".join(letter for letter in term if letter not in alone)
        tensors.append(x.sum([term.index(letter) for letter in alone]) if alone else x)
    if len(tensors) == 1:
        return tensors[0].permute([terms[0].index(letter) for letter in result])
    one, two = terms
    shared = [letter for letter in result if letter in one and letter in two]
    summed = [letter for letter in one if letter in two and letter not in result]
    rows = [letter for letter in result if letter in one and letter not in two]
    columns = [letter for letter in result if letter in two and letter not in one]
    sizes = dict(zip(one, tensors[0].shape, strict=True)) | dict(zip(two, tensors[1].shape, strict=True))

    def folded(x: Tensor, term: str, first: list[str], second: list[str]) -> Tensor:
        moved = x.permute([term.index(letter) for letter in (*shared, *first, *second)])
        return moved.reshape(*(sizes[letter] for letter in shared), _size(sizes, first), _size(sizes, second))

    found = torch.matmul(folded(tensors[0], one, rows, summed), folded(tensors[1], two, summed, columns))
    order = [*shared, *rows, *columns]
    return found.reshape([sizes[letter] for letter in order]).permute([order.index(letter) for letter in result])


def _size(sizes: dict[str, int], letters: Sequence[str]) -> int:
    return math.prod(sizes[letter] for letter in letters)


@decomposes("scaled_dot_product_attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(qkᵀ·scale + mask)v (Vaswani et al., NeurIPS 2017, arXiv 1706.03762)."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = torch.matmul(query * scale, key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zero = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device)
        attn_mask = torch.where(attn_mask, zero, -math.inf)
    weights = weights if attn_mask is None else weights + attn_mask
    return torch.matmul(weights.softmax(-1), value)
