"""Bounds of log softmax(z)ₖ = −LSE_j(z_j − z_k), from bounds of differences (GOOD: Bitterwolf et al., NeurIPS 2020,
arXiv 2007.08473, eq. 6), and what follows from them for probabilities and their derivatives.

`softmax(u).max()` is not an upper bound of the largest probability: other logits may be at their lower bounds.
"""

import torch
from torch import Tensor

from certood.scores.protocol import Interval, Logits, box_differences

# Rounding of probabilities and of what is made of them, in units of the last place: 1e-12 in float64.
ROUNDING_UNITS = 4500


def rounding(values: Tensor) -> float:
    """What rounding may cost numbers of size one that have the precision of `values`."""
    return ROUNDING_UNITS * torch.finfo(values.dtype).eps


def log_probability_bounds(logits: Logits) -> Interval:
    """Bounds (N, K) of log softmax(z)ₖ."""
    lower, upper = logits.pairs
    # LSE(d) ≥ w·d + H(w), one row a class.
    log_weights = logits.centre.log_softmax(1)
    weights = log_weights.exp()
    rows = weights[:, None, :] - logits.units[None]
    tangents = logits.lower_rows(rows) - (weights * log_weights).sum(1, keepdim=True)
    tangents = torch.nan_to_num(tangents, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = torch.maximum(torch.logsumexp(lower, 2), tangents)
    return Interval(-torch.logsumexp(upper, 2), (-least).clamp_max(0))


def box_log_probabilities(lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
    """Bounds (N, K) of log softmax from a box (N, K) of the logits, exact on it, and bounds (N, K, K) of their differences."""
    pairs = pair_bounds(lower, upper, differences)
    return Interval(-torch.logsumexp(pairs.upper, 2), -torch.logsumexp(pairs.lower, 2))


def pair_bounds(lower: Tensor, upper: Tensor, differences: Interval | None = None) -> Interval:
    """Bounds (N, K, K) of z_j − z_k at [n, k, j]: what a box (N, K) says, and what is known of the differences besides."""
    pairs = box_differences(lower, upper)
    if differences is None:
        return pairs
    return Interval(torch.maximum(pairs.lower, differences.lower), torch.minimum(pairs.upper, differences.upper))


def probability_bounds(logits: Logits) -> Interval:
    """Bounds (N, K) of softmax(z), moved out by what rounding may cost."""
    low, high = logits.kept(log_probability_bounds)
    slack = rounding(low)
    return Interval((low.exp() - slack).clamp_min(0), (high.exp() + slack).clamp_max(1))


def probability_jacobian(low: Tensor, high: Tensor) -> Interval:
    """Bounds (…, K, K) of ∂pₖ/∂zⱼ = pₖ(δₖⱼ − pⱼ) for probabilities in [low, high] (…, K)."""
    least, most = -high[..., :, None] * high[..., None, :], -low[..., :, None] * low[..., None, :]
    ends = low * (1 - low), high * (1 - high)
    middle = (low <= 0.5) & (high >= 0.5)  # p(1 − p) is largest at one half
    own = torch.eye(low.shape[-1], dtype=torch.bool, device=low.device)
    largest = torch.where(middle, 0.25, torch.maximum(*ends))
    return Interval(
        torch.where(own, torch.minimum(*ends)[..., None], least), torch.where(own, largest[..., None], most)
    )
