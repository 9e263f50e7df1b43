"""Scores of other packages: an entry point is all that it takes to evaluate one by name."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from certood import registry
from certood.errors import CertoodError
from certood.registry import Registry
from certood.scores import Score, score_by_name, suitable_scores
from certood.scores import registry as scores


@dataclass(frozen=True)
class Range(Score):
    """Minus the range of the logits, times a factor."""

    factor: float = 1.0
    name = "range"

    def __call__(self, logits: Tensor) -> Tensor:
        return self.factor * (logits.amin(-1) - logits.amax(-1))


def test_a_score_of_another_package_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("range", f"{__name__}:Range", "certood.scores")
    monkeypatch.setattr(EntryPoint, "load", lambda _: Range)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "certood.scores" else [])
    monkeypatch.setattr(scores, "SCORES", Registry("score", "certood.scores", {}))
    found = score_by_name("range:factor=2")
    assert found == Range(2.0)
    torch.testing.assert_close(found(torch.tensor([[0.0, 3.0, 1.0]])), torch.tensor([-6.0]))
    assert suitable_scores(3, 3) == [Range()]
    with pytest.raises(CertoodError, match="score 'range' has no parameter 'factors'; expected factor"):
        score_by_name("range:factors=2")
