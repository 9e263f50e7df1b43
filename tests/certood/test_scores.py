"""Scores against closed forms, SciPy and the conventions of sign."""

import math

import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from certood.errors import CertoodError
from certood.scores import MSP, SCORES, AbsentClass, Energy, Entropy, MaxLogit, Score, score_by_name, suitable_scores


@pytest.fixture
def logits() -> torch.Tensor:
    return 5 * torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_energy_is_scipys_logsumexp(logits: torch.Tensor, temperature: float) -> None:
    expected = -temperature * logsumexp(logits.numpy() / temperature, axis=1)
    torch.testing.assert_close(Energy(temperature)(logits), torch.from_numpy(expected))


def test_probability_scores_are_scipys(logits: torch.Tensor) -> None:
    probabilities = softmax(logits.numpy(), axis=1)
    torch.testing.assert_close(MSP()(logits), torch.from_numpy(-probabilities.max(1)))
    torch.testing.assert_close(Entropy()(logits), torch.from_numpy(entropy(probabilities, axis=1)))
    torch.testing.assert_close(AbsentClass()(logits), torch.from_numpy(probabilities[:, -1]))
    torch.testing.assert_close(MaxLogit()(logits), -logits.max(1).values)


@pytest.mark.parametrize("name", SCORES.names())
def test_a_confident_prediction_scores_lower_than_a_flat_one(name: str) -> None:
    score = score_by_name(name)
    assert isinstance(score, Score)
    assert score.name == name
    confident, flat = score(torch.tensor([[9.0, 0, 0, 0], [0.0, 0, 0, 0]]))
    assert confident < flat


@pytest.mark.parametrize("name", SCORES.names())
def test_large_logits_stay_finite(name: str) -> None:
    assert score_by_name(name)(torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])).isfinite().all()


def test_flat_logits_in_closed_form() -> None:
    flat = torch.zeros(1, 8)
    assert Energy()(flat).item() == pytest.approx(-math.log(8))
    assert MSP()(flat).item() == pytest.approx(-1 / 8)
    assert Entropy()(flat).item() == pytest.approx(math.log(8))


def test_unknown_names_and_bad_temperatures_are_refused() -> None:
    with pytest.raises(CertoodError, match="did you mean 'energy'"):
        score_by_name("enrgy")
    with pytest.raises(CertoodError, match="temperature > 0, got 0"):
        Energy(0)


def test_the_absent_class_needs_one() -> None:
    assert "absent-class" not in [score.name for score in suitable_scores(4, 4)]
    assert "absent-class" in [score.name for score in suitable_scores(4, 5)]
    with pytest.raises(CertoodError, match="needs a network trained with an absent class, 5 outputs for 4 classes"):
        AbsentClass().on(4, 4)
