"""The inequalities that must hold for every image, from the declarations of the quantities.

Of the same unknown value every certified lower bound is at most every certified or found upper bound, and every found lower
bound at most every certified upper bound; every score that is found in a ball lies within all certified bounds of that
ball; the network's own score is that of the captured graph. What does not hold means that something is not sound, and is
counted, never dropped.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from certood.analysis.evidence.base import Known
from certood.analysis.evidence.quantities import Subject

# Two computations of one value in float64 differ by rounding: (relative, absolute) slack.
SLACK: dict[Subject, tuple[float, float]] = {"radius": (1e-9, 0.0), "lipschitz": (1e-7, 1e-7), "score": (0.0, 1e-7)}


def violations(known: Known) -> Tensor:
    """How many inequalities do not hold for each image (N,); a value that is not a number fulfils none."""
    count = torch.zeros(len(known.scores), dtype=torch.int64, device=known.scores.device)
    for of, low, high in _pairs(known):
        relative, absolute = SLACK[of]
        slack = absolute * (1 + known.scores.abs()) if of == "score" else absolute
        failed = ~(low <= high * (1 + relative) + slack)
        count += failed.view(-1, len(count)).sum(0)
    return count


def _pairs(known: Known) -> Iterator[tuple[Subject, Tensor, Tensor]]:
    """What each pair is about, and the two values, of which the first must not exceed the second; (N,) or (E, N)."""
    if known.copied is not None:
        yield from (("score", known.copied.lower, known.scores), ("score", known.scores, known.copied.upper))
    subjects: tuple[Subject, ...] = ("radius", "lipschitz")
    for of in subjects:
        for low in known.every(of, "lower", "certified"):
            yield from ((of, low, high) for high in known.every(of, "upper", "certified", "found"))
        for low in known.every(of, "lower", "found"):
            yield from ((of, low, high) for high in known.every(of, "upper", "certified"))
    for found in (known.scores, *known.every("score", None, "found")):
        yield from (("score", low, found) for low in known.every("score", "lower", "certified"))
        yield from (("score", found, high) for high in known.every("score", "upper", "certified"))
