"""What every sampler must do, over the registry, and what each promises."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import Ridge
from torch import Tensor

from certood import inference
from certood.errors import CertoodError
from certood.models import build_model
from certood.scores import Energy
from certood.train.candidates import score_candidates
from certood.train.samplers import SAMPLERS, Sampler
from certood.train.samplers.base import cluster_extremes
from certood.train.samplers.cluster import ClusterSampler
from certood.train.samplers.diverse import DiverseSampler
from certood.train.samplers.greedy import GreedySampler
from certood.train.samplers.posterior import PosteriorSampler, posterior
from certood.train.samplers.random import RandomSampler

# The most picks for each outlier wanted, where it is not one.
MOST = {"cluster": 2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ID_FEATURES = torch.randn(32, 16, generator=torch.Generator().manual_seed(9)) + 1


def pool(candidates: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    scores = torch.randn(candidates, generator=generator(seed))
    return scores, torch.randn(candidates, 16, generator=generator(seed + 1))


@pytest.fixture(params=SAMPLERS.names())
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def sampler(name: str) -> Sampler:
    return SAMPLERS.find(name)()


@pytest.mark.parametrize(("candidates", "wanted"), [(384, 64), (10, 64), (1, 4), (64, 64)])
def test_picks_are_distinct_candidates_and_as_many_as_wanted(
    sampler: Sampler, name: str, candidates: int, wanted: int
) -> None:
    scores, features = pool(candidates)
    picked = sampler(scores, features, wanted, generator(2), ID_FEATURES)
    assert picked.dtype == torch.int64
    assert len(picked.unique()) == len(picked)
    assert 0 <= int(picked.min()) <= int(picked.max()) < candidates
    least, most = min(wanted, candidates), MOST.get(name, 1) * wanted
    assert least <= len(picked) <= min(most, candidates)


def test_picks_are_a_function_of_the_pool_and_the_generator(sampler: Sampler) -> None:
    scores, features = pool(100)
    before = scores.clone(), features.clone()
    torch.manual_seed(1)
    once = sampler(scores, features, 20, generator(2), ID_FEATURES)
    torch.manual_seed(2)
    assert torch.equal(once, sampler(scores, features, 20, generator(2), ID_FEATURES))
    assert torch.equal(scores, before[0])
    assert torch.equal(features, before[1])


def test_scores_and_features_matter_if_and_only_if_they_are_asked_for(sampler: Sampler) -> None:
    scores, features = pool(100)
    once = sampler(scores, features, 20, generator(2), ID_FEATURES)
    other = sampler(scores.roll(7), features.roll(3, 0), 20, generator(2), ID_FEATURES)
    assert torch.equal(once, other) != sampler.needs_scores
    moved = sampler(scores, features, 20, generator(2), ID_FEATURES - 1)
    assert torch.equal(once, moved) != sampler.needs_id_features
    if not sampler.needs_scores:
        assert torch.equal(once, sampler(scores, None, 20, generator(2)))


def test_duplicate_candidates_are_distinct_picks(sampler: Sampler) -> None:
    picked = sampler(torch.zeros(20), torch.ones(20, 3), 5, generator(), torch.rand(8, 3))
    assert len(picked.unique()) == len(picked)


def test_values_that_diverged_are_named(sampler: Sampler, name: str) -> None:
    if not sampler.needs_scores:
        pytest.skip(f"{name} looks at no scores")
    with pytest.raises(CertoodError, match="1 of 9 candidate scores are not finite"):
        sampler(torch.tensor([torch.nan] + [0.0] * 8), torch.rand(9, 2), 3, generator(), torch.rand(4, 2))


@pytest.mark.parametrize("clustering", [DiverseSampler(), ClusterSampler()])
def test_features_that_diverged_are_named(clustering: Sampler) -> None:
    with pytest.raises(CertoodError, match="not finite"):
        clustering(torch.zeros(9), torch.full((9, 2), torch.nan), 3, generator())
    with pytest.raises(CertoodError, match="none were given"):
        clustering(torch.zeros(9), None, 3, generator())


def groups() -> tuple[Tensor, Tensor, Tensor]:
    """Scores and features of 40 candidates in 5 groups of directions far from each other, and their groups."""
    labels = torch.arange(40) % 5
    angles = 2 * torch.pi * (labels + 0.02 * torch.rand(40, generator=generator())) / 5
    lengths = 1 + 9 * torch.rand(40, 1, generator=generator(1))
    features = lengths * torch.stack([angles.cos(), angles.sin()], 1)
    return torch.randn(40, generator=generator(2)), features, labels


def by_definition(name: str, scores: Tensor, labels: Tensor) -> set[int] | None:
    """What a sampler should pick of the groups, one outlier wanted for each, in plain Python; None where it is random."""
    values = scores.tolist()
    order = sorted(range(40), key=values.__getitem__)
    members = [[i for i in range(40) if labels[i] == group] for group in range(5)]
    match name:
        case "greedy":
            return set(order[:5])
        case "diverse":
            band = [[i for i in group if i in order[:20]] for group in members]
            return {min(group, key=values.__getitem__) for group in band}
        case "cluster":
            both = ((min(group, key=values.__getitem__), max(group, key=values.__getitem__)) for group in members)
            return set(itertools.chain(*both))
    return None


def test_picks_are_those_of_the_definition_in_whatever_order_candidates_come(name: str, sampler: Sampler) -> None:
    scores, features, labels = groups()
    expected = by_definition(name, scores, labels)
    if expected is None:
        pytest.skip(f"{name} has no definition here")
    if name in ("diverse", "cluster"):
        sampler = SAMPLERS.find(name)(restarts=5)  # type: ignore[call-arg]
    for seed in range(3):
        order = torch.randperm(40, generator=generator(seed))
        picked = sampler(scores[order], features[order], 5, generator(seed))
        assert set(order[picked].tolist()) == expected


def test_random_picks_are_uniform() -> None:
    counts = torch.zeros(10)
    draw = generator()
    for _ in range(2000):
        counts[RandomSampler()(torch.zeros(10), None, 3, draw)] += 1
    # 2000 draws of 3 of 10: each is expected 600 times with a standard deviation of 20.5.
    assert (counts - 600).abs().max() < 4 * 20.5


def test_the_band_of_diverse_limits_what_is_picked() -> None:
    scores, features = pool(200)
    lowest = scores.sort().values
    for band in (0.1, 0.4):
        picked = DiverseSampler(band=band)(scores, features, 20, generator())
        assert scores[picked].max() <= lowest[round(band * 200) - 1]
    assert scores[picked].max() > lowest[19]


def test_extremes_are_those_of_a_loop() -> None:
    labels = torch.randint(7, (60,), generator=generator())
    scores = torch.randn(60, generator=generator(1))
    lowest, highest = cluster_extremes(labels, scores)
    for label, low, high in zip(labels.unique(), lowest, highest, strict=True):
        members = (labels == label).nonzero().flatten()
        assert low == members[scores[members].argmin()]
        assert high == members[scores[members].argmax()]


def test_greedy_takes_the_lowest() -> None:
    scores = torch.tensor([3.0, -1.0, 2.0, 0.0])
    assert sorted(GreedySampler()(scores, None, 2, generator()).tolist()) == [1, 3]


def test_cluster_takes_both_ends_of_each_group_and_a_lone_member_once() -> None:
    features = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2 + [[-1.0, 0.0]])
    scores = torch.tensor([5.0, 1.0, 3.0, -2.0, 7.0, 0.0])
    picked = ClusterSampler(restarts=5)(scores, features, 3, generator())
    assert picked.tolist() == [0, 1, 3, 4, 5]
    low = ClusterSampler(restarts=5, ends="low")(scores, features, 3, generator())
    high = ClusterSampler(restarts=5, ends="high")(scores, features, 3, generator())
    assert (low.tolist(), high.tolist()) == ([1, 3, 5], [0, 4, 5])


def test_diverse_takes_the_lowest_of_each_group_within_the_band() -> None:
    features = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    scores = torch.tensor([1.0, 2.0, 9.0, 3.0, 2.5, 9.0])
    picked = DiverseSampler(band=2 / 3, restarts=5)(scores, features, 2, generator())
    assert sorted(picked.tolist()) == [0, 4]


def test_features_are_compared_by_direction_not_length() -> None:
    features = torch.tensor([[1.0, 0.0], [100.0, 0.0], [0.0, 1.0], [0.0, 100.0]])
    picked = ClusterSampler(restarts=5)(torch.tensor([0.0, 1.0, 2.0, 3.0]), features, 2, generator())
    assert picked.tolist() == [0, 1, 2, 3]


def test_candidates_are_scored_in_eval_mode_without_gradients_and_the_mode_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "FEWEST", 2)
    monkeypatch.setattr(inference, "PLACES", 1)
    model = build_model(
        "wrn-40-2", num_classes=4, input_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.2] * 3, options={"depth": 10}
    )
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(5, 3, 32, 32)
    scores, features = score_candidates(model, images, Energy())
    assert model.training
    assert not scores.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    torch.testing.assert_close(scores, Energy()(model(images)))
    torch.testing.assert_close(features, model.features(images))


def points_and_targets() -> tuple[Tensor, Tensor]:
    """Thirty points whose four features go together, so that the weights' posterior is far from round."""
    points = torch.randn(30, 4, dtype=torch.float64, generator=generator()).cumsum(1)
    return points, torch.randn(30, dtype=torch.float64, generator=generator(1))


def test_the_posterior_is_its_closed_form_and_scikit_learns() -> None:
    points, targets = points_and_targets()
    found = posterior(points, targets, noise=0.7, prior=2.0)
    x, y = points.numpy(), targets.numpy()
    covariance = np.linalg.inv(x.T @ x / 0.49 + np.eye(4) / 4)
    np.testing.assert_allclose((found.precision_factor @ found.precision_factor.mT).numpy(), np.linalg.inv(covariance))
    np.testing.assert_allclose(found.mean, covariance @ x.T @ y / 0.49)
    # Ridge regression has the same mean, its penalty being noise² / prior².
    ridge = Ridge(alpha=0.49 / 4, fit_intercept=False).fit(x, y)
    np.testing.assert_allclose(found.mean, ridge.coef_, rtol=1e-8)
    # A single weight by hand: precision Σx²/σ² + 1/σ_w², mean Σxy/σ² over it.
    hand = posterior(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]), noise=1.0, prior=1.0)
    assert hand.mean.item() == pytest.approx(9 / 6)
    assert hand.precision_factor.item() ** 2 == pytest.approx(6)


def test_draws_have_the_mean_and_the_covariance_of_the_posterior() -> None:
    points, targets = points_and_targets()
    found = posterior(points, targets, noise=2.0, prior=1.0)
    source = generator(3)
    draws = torch.stack([found.draw(source) for _ in range(4000)]).numpy()
    precision = (found.precision_factor @ found.precision_factor.mT).numpy()
    covariance = np.linalg.inv(precision)
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(draws.mean(0), found.mean, atol=4 * deviation.max() / math.sqrt(4000))
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=5 * deviation.max() ** 2 * math.sqrt(2 / 4000))
    # In coordinates in which the posterior is standard normal, squared lengths are χ² of four degrees of freedom.
    centred = draws - found.mean.numpy()
    squared = np.einsum("ni,ij,nj->n", centred, precision, centred)
    assert stats.kstest(squared, stats.chi2(4).cdf).pvalue > 0.01


def test_posterior_picks_are_nearest_to_a_boundary_between_id_images_and_candidates() -> None:
    # ID images at angle 0, candidates over the half circle: the boundary lies between those near and those far.
    angles = torch.linspace(0.02, torch.pi, 60, dtype=torch.float64)
    features = torch.stack([angles.cos(), angles.sin()], 1)
    inside = torch.stack([torch.ones(300), 0.05 * torch.randn(300, generator=generator())], 1).double()
    scores = torch.zeros(60)
    sampler = PosteriorSampler(noise=0.05, prior=100.0)  # hardly any doubt
    picked = sampler(scores, features, 6, generator(), inside)
    x = np.column_stack([np.concatenate([inside / inside.norm(dim=1, keepdim=True), features]), np.ones(360)])
    y = np.repeat([-4.6, 4.6], [300, 60])
    fitted = np.linalg.lstsq(x, y, rcond=None)[0]
    nearest = np.abs(x[300:] @ fitted).argsort()
    assert len(set(picked.tolist()) & set(nearest[:8].tolist())) >= 5
    # With doubt, the boundary moves from draw to draw.
    doubtful = PosteriorSampler(noise=20.0)
    many = {int(index) for seed in range(20) for index in doubtful(scores, features, 6, generator(seed), inside)}
    assert len(many) > 20


def test_the_posterior_needs_features_of_id_images() -> None:
    with pytest.raises(CertoodError, match="ID images by their features; none were given"):
        PosteriorSampler()(torch.zeros(4), torch.rand(4, 2), 2, generator())
    with pytest.raises(CertoodError, match="features of ID images or candidates are not finite"):
        PosteriorSampler()(torch.zeros(4), torch.rand(4, 2), 2, generator(), torch.full((3, 2), torch.inf))
