"""The verdict about every image at every radius: certified, refuted or unknown."""

import torch

from certood.analysis.evidence.base import Known
from certood.analysis.settings import Settings

VERDICTS = ("certified", "refuted", "unknown")


def verdicts(threshold: float, known: Known, settings: Settings) -> list[list[str]]:
    """For every ε of the settings the verdicts of all images.

    Refuted is a wrong decision, and one that a found score or a found radius changes within ε; certified is what a certified
    bound of the score or a certified radius proves. Of a smoothed detector its probabilistic radius does. A point that the
    network itself has evaluated outweighs a bound: where both speak, the verdict is refuted, and a violation is counted.
    """
    inside = known.kind == "id"
    eps = torch.tensor(settings.eps, dtype=torch.float64, device=known.scores.device)[:, None]
    kept = torch.zeros(len(eps), len(known.scores), dtype=torch.bool, device=eps.device)
    changed = ~known.correct.expand_as(kept)
    for radius in known.every("radius", "lower", "probabilistic" if settings.smoothed else "certified"):
        kept = kept | (radius >= eps)
    for radius in known.every("radius", "upper", "found"):
        changed = changed | (radius <= eps)
    for bound in known.every("score", "upper" if inside else "lower", "certified"):
        kept = kept | (bound <= threshold if inside else bound > threshold)
    for score in known.every("score", None, "found"):
        changed = changed | (score > threshold if inside else score <= threshold)
    return [
        ["refuted" if bad else "certified" if good else "unknown" for good, bad in zip(*rows, strict=True)]
        for rows in zip(kept.tolist(), changed.tolist(), strict=True)
    ]
