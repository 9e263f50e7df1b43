"""Bounds of LSE(z) = log Σ exp z_j: tangents from below, chords from above.

- From below: LSE(z) ≥ w·z + H(w) for every w of the simplex (a tangent where w = softmax(z)); LSE(l).
- From above: LSE(u); ub(z_k) + LSE_j ub(z_j − z_k); the chord of each exponential, then the tangent of the logarithm, in
  logits and in differences (Wei et al., AISTATS 2023, arXiv 2303.01713).
"""

import torch
from torch import Tensor

from certood.scores.protocol import Interval, Logits

# Where the tangent of log touches it, as multiples of the value at the centre.
REFERENCES = (1.0, 1.6, 2.6)


def logsumexp_bounds(logits: Logits) -> Interval:
    """Lower and upper bounds (N,) of LSE(z), each the best of several."""
    box = logits.box
    parameters = torch.stack([logits.centre, box.lower, box.upper], 1)
    log_weights = parameters.log_softmax(2)
    weights = log_weights.exp()
    tangents = logits.lower_rows(weights) - (weights * log_weights).sum(2)
    tangents = torch.nan_to_num(tangents, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    lower = torch.maximum(torch.logsumexp(box.lower, 1), tangents.amax(1))
    return Interval(lower, logsumexp_upper(logits))


def logsumexp_upper(logits: Logits) -> Tensor:
    """Upper bounds (N,) of LSE(z), the best of several."""
    box, differences = logits.box, logits.top_differences
    rows, constants = logits.kept(chord_rows)
    top = box.upper.gather(1, logits.top[:, None])[:, 0]
    uppers = torch.cat(
        [
            torch.logsumexp(box.upper, 1)[:, None],
            (top + torch.logsumexp(differences.upper, 1))[:, None],
            constants - logits.lower_rows(-rows),
        ],
        1,
    )
    return torch.nan_to_num(uppers, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(1)


def chord_rows(logits: Logits) -> tuple[Tensor, Tensor]:
    """Linear functions a·z + b ≥ LSE(z), rows (N, M, K) and constants (N, M), from chords of exp.

    By the logits themselves, and by their differences from the one that is largest at the centre.
    """
    top = logits.units[logits.top]
    own = chords(logits, logits.units.expand(len(top), -1, -1), logits.box, torch.zeros_like(top))
    other = chords(logits, logits.units[None] - top[:, None], logits.top_differences, top)
    return torch.cat([own[0], other[0]], 1), torch.cat([own[1], other[1]], 1)


def chords(logits: Logits, maps: Tensor, box: Interval, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, M, K) and constants (N, M) above offset·z + LSE_j(d_j) for d = maps·z in a box (N, J).

    `maps` is (N, J, K), `offset` (N, K). e^d ≤ a·d + b on the box, Σ(a·d + b) = w, and log w ≤ log w₀ + (w − w₀)/w₀ for every
    w₀ > 0. The best w₀ is the largest w, which is not known before: the value at the centre is tried, and multiples of it.
    """
    shift = box.upper.amax(1, keepdim=True)
    slope, constant = chord_of_exp(box.lower - shift, box.upper - shift)
    centre = torch.einsum("njk,nk->nj", maps, logits.centre) - shift
    value = (slope * centre + constant).sum(1, keepdim=True).clamp_min(torch.finfo(centre.dtype).tiny)
    reference = value * torch.tensor(REFERENCES, dtype=centre.dtype, device=centre.device)
    rows = offset[:, None] + torch.einsum("nj,njk->nk", slope, maps)[:, None] / reference[..., None]
    rest = (constant - slope * shift).sum(1, keepdim=True) / reference
    return rows, rest + reference.log() - 1 + shift


def chord_of_exp(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and shift of the chord of exp; without width the constant of the upper end, which bounds exp from above there."""
    low, high = lower.exp(), upper.exp()
    width = upper - lower
    slope = torch.where(width > 1e-9, (high - low) / width.clamp_min(1e-12), torch.zeros_like(width))
    return slope, high - slope * upper
