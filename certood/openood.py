"""OpenOOD's numbers: its definitions of FPR@95 and of both AUPR, which are not ours, and its table of results as CSV.

Yang et al. 2022, "OpenOOD: Benchmarking Generalized Out-of-Distribution Detection", arXiv 2210.07242; version 1.5 of its code.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certood.errors import CertoodError
from certood.metrics import checked_scores

RECALL = 0.95
COLUMNS = ("dataset", "FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")
# OpenOOD's names of means over groups of sets, by ours.
MEANS = {"near": "nearood", "far": "farood", "mean": "mean"}


def openood_metrics(id_scores: NDArray[np.float64], ood_scores: NDArray[np.float64]) -> dict[str, float]:
    """FPR@95, AUPR_IN and AUPR_OUT of scores (n,) and (m,), higher being more outlying, as OpenOOD defines them.

    OOD is what is to be found: FPR@95 is the share of ID images that are rejected where at least 95 % of the OOD images are, at
    the corners of scikit-learn's curve (in small sets it may lie above the least such share),
    while `fpr95` is the share of OOD images accepted where 95 % of held-out ID images are. Areas under precision and recall are
    by trapezoids, while `aupr_in` and `aupr_out` are average precisions. Raises CertoodError as `certood.metrics` does.
    """
    from sklearn.metrics import auc, precision_recall_curve, roc_curve  # noqa: PLC0415 (slow to import)

    inside, outside = checked_scores(id_scores, "ID"), checked_scores(ood_scores, "OOD")
    scores = np.concatenate([inside, outside])
    is_ood = np.repeat([0, 1], [inside.size, outside.size])
    false, true, _ = roc_curve(is_ood, scores)
    precision_in, recall_in, _ = precision_recall_curve(1 - is_ood, -scores)
    precision_out, recall_out, _ = precision_recall_curve(is_ood, scores)
    return {
        "fpr95": float(false[np.argmax(true >= RECALL)]),
        "aupr_in": float(auc(recall_in, precision_in)),
        "aupr_out": float(auc(recall_out, precision_out)),
    }


def openood_csv(result: Mapping[str, Any], score: str) -> str:
    """The results of one score of an evaluation.json as OpenOOD's ood.csv, in per cent.

    The near sets and their mean `nearood`, then the far ones and `farood`; where none was called near, all sets and `mean`.
    Raises CertoodError for a score that was not measured, and for an evaluation that lacks OpenOOD's numbers.
    """
    if score not in result["scores"]:
        raise CertoodError(f"the evaluation has no score {score!r}; it has {', '.join(result['scores'])}")
    sets = result["scores"][score]["sets"]
    if any("openood" not in measured for measured in sets.values()):
        raise CertoodError("the evaluation is of an earlier certood, without OpenOOD's numbers; evaluate again")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for group, members in grouped(list(sets), result.get("near", ())).items():
        rows = {name: _row(sets[name], result["accuracy"]) for name in members}
        for name, row in (*rows.items(), (MEANS[group], np.mean(list(rows.values()), axis=0))):
            table.writerow([name, *(f"{100 * value:.2f}" for value in row)])
    return text.getvalue()


def is_openood_csv(content: bytes) -> bool:
    """Whether a file is such a table."""
    return content.startswith(",".join(COLUMNS).encode())


def grouped(sets: Sequence[str], near: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The near and the far sets, as far as there are any; all of them as `mean` where none is near."""
    if not near:
        return {"mean": tuple(sets)} if sets else {}
    groups = {"near": tuple(n for n in sets if n in near), "far": tuple(n for n in sets if n not in near)}
    return {group: members for group, members in groups.items() if members}


def _row(measured: Mapping[str, Any], accuracy: float) -> tuple[float, ...]:
    theirs = measured["openood"]
    return theirs["fpr95"], measured["auroc"], theirs["aupr_in"], theirs["aupr_out"], accuracy
