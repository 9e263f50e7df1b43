"""Certificates that are read are checked again: the inequalities between their numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from certood.analysis.evidence.base import Known
from certood.analysis.evidence.registry import quantities
from certood.analysis.evidence.sandwich import violations
from certood.analysis.evidence.smoothing import SMOOTHING
from certood.analysis.records import Certificate

# Margin and decision follow from score and threshold; what was written is what was computed.
ROUNDING = 1e-9


def unsound(records: Sequence[Certificate]) -> list[Certificate]:
    """The records whose numbers break more inequalities than were counted when they were certified.

    These are the inequalities between quantities (`certood.analysis.evidence.sandwich`), and that decision and margin are
    those of score and threshold; the decision of a smoothed detector, whose score the record has not, is any.
    """
    found = []
    for kind in dict.fromkeys(record.kind for record in records):
        group = [record for record in records if record.kind == kind]
        counts = violations(_known(kind, group)).tolist()
        found += [
            record
            for record, count in zip(group, counts, strict=True)
            if count > record.violations
            or (record.method != SMOOTHING and record.accepted != (record.score <= record.threshold))
            or not abs(record.margin - abs(record.threshold - record.score)) <= ROUNDING * (1 + abs(record.score))
        ]
    return found


def _known(kind: str, records: Sequence[Certificate]) -> Known:
    """What the records say, as the evidence said it; quantities that were not computed are left out."""
    scores, margins = (_tensor([getattr(r, name) for r in records]) for name in ("score", "margin"))
    known = Known(kind, [r.index for r in records], scores, margins, torch.tensor([r.accepted for r in records]))
    for quantity in quantities():
        if quantity.per_eps:
            values = _tensor([[part.values.get(quantity.name, torch.nan) for part in r.at] for r in records]).T
        else:
            values = _tensor([r.values.get(quantity.name, torch.nan) for r in records])
        if not values.isnan().all():
            known.values[quantity.name] = values
            known.quantities.append(quantity)
    return known


def _tensor(values: Sequence[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
