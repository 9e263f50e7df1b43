"""The alarm of certified training: a score that has become nearly constant tells nothing apart, however well it is certified."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from certood.errors import ScoreCollapsed
from certood.inference import collect_logits
from certood.metrics import auroc
from certood.train.assembly import Training

LEAST_AUROC = 0.55
LEAST_SHARE = 0.01


def watched_scores(training: Training) -> tuple[float, float]:
    """AUROC of held-out auxiliary outliers against validation images, and the standard deviation of the scores of both.

    Not a number where no auxiliary outliers are held out.
    """
    held_out, score, device = training.data.auxiliary_validation, training.step.objective.score, training.fabric.device
    if held_out is None:
        return np.nan, np.nan
    inside, outside = (
        score(collect_logits(training.network, source, device=device)).numpy()
        for source in (training.data.id.validation, held_out)
    )
    return auroc(inside, outside), float(np.concatenate([inside, outside]).std())


def check_score(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ScoreCollapsed where, while the radius grows or is reached, the last epoch's score is nearly constant: an AUROC
    below 0.55, and a standard deviation below 1 % of the largest of the epochs before."""
    if not rows:
        return
    *earlier, last = rows
    before = max((row["score_deviation"] for row in earlier), default=0.0)
    if last["eps"] and last["auroc_auxiliary"] < LEAST_AUROC and last["score_deviation"] < LEAST_SHARE * before:
        raise ScoreCollapsed(
            f"the score became nearly constant in epoch {last['epoch']}, at eps = {last['eps']:.4g}: AUROC of held-out auxiliary "
            f"outliers {100 * last['auroc_auxiliary']:.1f} %, standard deviation {last['score_deviation']:.3g} after "
            f"{before:.3g}. Nothing can be detected with it. Try model.initialisation = 'certified', a longer certified.ramp "
            "with more training.epochs, a smaller certified.eps, a larger network, or objective.name = 'logistic'"
        )
