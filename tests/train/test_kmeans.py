"""k-means against scikit-learn and closed forms, wherever the points lie."""

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from certood.data import load_set, to_pixels
from certood.errors import CertoodError
from certood.models import build_model
from certood.train.kmeans import kmeans


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits_features(count: int) -> Tensor:
    from pathlib import Path

    images = to_pixels(load_set("digits", root=Path()).batch(torch.arange(count)))
    torch.manual_seed(0)
    model = build_model("small-cnn", num_classes=6, input_shape=(1, 8, 8), mean=[0.3], std=[0.4])
    return nn.functional.normalize(model.features(images).detach(), dim=1)


@pytest.mark.parametrize("k", [6, 64])
def test_inertia_is_within_two_per_cent_of_scikit_learns(k: int) -> None:
    features = digits_features(384)
    ours = kmeans(features, k, restarts=10, generator=generator())
    theirs = KMeans(k, n_init=10, random_state=0).fit(features.numpy()).inertia_
    assert ours.inertia <= 1.02 * theirs
    recomputed = sum((features[ours.labels == label] - ours.centres[label]).square().sum() for label in range(k))
    assert ours.inertia == pytest.approx(float(recomputed), rel=1e-4)


def test_separate_groups_are_found_exactly() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 20, 2, generator=generator())).flatten(0, 1)
    labels = kmeans(points, 3, generator=generator()).labels.view(3, 20)
    assert (labels == labels[:, :1]).all()
    assert len(labels[:, 0].unique()) == 3


def test_every_cluster_of_distinct_points_has_a_member() -> None:
    points = torch.cat([torch.zeros(50, 2), torch.arange(8.0)[:, None].expand(8, 2) + 100])
    result = kmeans(points + 1e-3 * torch.rand(58, 2, generator=generator()), 12, generator=generator())
    assert len(result.labels.unique()) == 12


@pytest.mark.parametrize("origin", [0.0, 1e4, -3e5])
def test_clusters_do_not_depend_on_where_the_origin_is(origin: float) -> None:
    # Groups of diameter 0.25 that are 2 apart, on a grid that float32 represents exactly at every origin:
    # an expanded |x|² - 2x·c + |c|² in float32 is off by 8 and more at 1e4.
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 2.0])] * 3)
    offsets = torch.randint(2, (8, 12, 3), generator=generator()) / 4
    points = (corners[:, None] + offsets).flatten(0, 1)
    found, expected = kmeans(points + origin, 8, generator=generator()), kmeans(points, 8, generator=generator())
    labels = found.labels.view(8, 12)
    assert (labels == labels[:, :1]).all()
    assert torch.equal(found.labels, expected.labels)
    groups = (corners[:, None] + offsets).double()
    assert found.inertia == pytest.approx((groups - groups.mean(1, keepdim=True)).square().sum().item(), rel=1e-6)
    torch.testing.assert_close(found.centres, expected.centres + origin, rtol=1e-7, atol=0)


def test_a_far_group_leaves_the_distances_within_a_near_one_accurate() -> None:
    # Centring cannot help here: the mean lies at 1e8, where |x|² has an error of 2 in float64.
    near = torch.tensor([0.0, 1e-2, 1.0, 1.01, 2.0, 2.01])
    points = torch.cat([near, torch.full((6,), 2e8)])[:, None]
    result = kmeans(points, 4, restarts=10, generator=generator())
    labels = result.labels.tolist()
    assert [labels[i] == labels[i + 1] for i in range(5)] == [True, False, True, False, True]
    assert result.inertia == pytest.approx(3 * 2 * 0.005**2, rel=1e-3)


def test_starts_are_the_same_however_distances_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    features = digits_features(100)
    whole = kmeans(features, 12, generator=generator())
    monkeypatch.setattr("certood.train.kmeans.POINTS_WITH_ALL_PAIRS", 0)
    monkeypatch.setattr("certood.train.kmeans.PAIRS_AT_ONCE", 7)
    assert torch.equal(kmeans(features, 12, generator=generator()).labels, whole.labels)


def test_duplicates_and_few_points_do_no_harm() -> None:
    same = kmeans(torch.ones(30, 4), 5, generator=generator())
    assert same.inertia == 0
    few = kmeans(torch.rand(3, 4), 5, generator=generator())
    assert sorted(few.labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("points", "k", "message"),
    [
        (torch.tensor([[1.0], [torch.nan]]), 1, "1 of 2 points are not finite"),
        (torch.zeros(0, 2), 1, "expected points"),
        (torch.zeros(3, 2), 0, "expected points"),
    ],
)
def test_what_cannot_be_clustered_is_refused(points: Tensor, k: int, message: str) -> None:
    with pytest.raises(CertoodError, match=message):
        kmeans(points, k, generator=generator())
