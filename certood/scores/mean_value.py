"""Linear bounds of any score from bounds of its gradient: the mean value theorem (for kinks that of Lebourg)."""

import torch

from certood.scores.protocol import GradientBox, Interval, Logits, ScoreRows, Side


def mean_value_rows(logits: Logits, value: torch.Tensor, gradient: GradientBox, side: Side) -> ScoreRows:
    """Rows that bound S(z) = S(z₀) + g·(z − z₀), for `value` S(z₀) (N,) at the centre and g in a box with a known sum.

    With k the logit that is largest at the centre and d_j = (z_j − z_k) − (z₀_j − z₀_k), the product is total·(z_k − z₀_k) +
    Σ g_j·d_j. From below g·d ≥ min(g_l·d, g_u·d), which is concave, so that its chord over the interval of d bounds it; from
    above likewise.
    """
    centre = logits.centre
    at_top = centre.gather(1, logits.top[:, None])
    shift = centre - at_top
    # The centre lies in the set: bounds that rounding has moved beyond it are moved back.
    low, high = (
        part.clamp(*limits)
        for part, limits in zip(_moved(logits.top_differences, shift), ((None, 0), (0, None)), strict=True)
    )
    least, most = gradient.lower, gradient.upper
    left, right = (most, least) if side == "lower" else (least, most)
    width = high - low
    flat = width <= 0
    slope = torch.where(flat, (least + most) / 2, (right * high - left * low) / torch.where(flat, 1.0, width))
    ends = torch.stack([(left - slope) * low, (right - slope) * high])
    constant = ends.amin(0) if side == "lower" else ends.amax(0)
    own = gradient.total - slope.sum(1, keepdim=True)
    rows = slope + own * logits.units[logits.top]
    constants = value + (constant - slope * shift).sum(1) - gradient.total * at_top[:, 0]
    return ScoreRows(rows[:, None, None], constants[:, None, None])


def _moved(box: Interval, shift: torch.Tensor) -> Interval:
    return Interval(box.lower - shift, box.upper - shift)
