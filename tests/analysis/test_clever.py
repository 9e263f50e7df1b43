"""CLEVER: points that are uniform in a ball, and the end of a reverse Weibull distribution."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from certood.analysis.evidence.attacks import generators
from certood.analysis.evidence.clever import BATCH, BATCHES, FARTHEST, clever, uniform_points


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_points_are_uniform_in_the_ball(norm: float) -> None:
    """In three dimensions the share within radius t·ε is t³, and every octant has an eighth."""
    eps, count = 0.2, 4000
    images = torch.full((count, 1, 1, 3), 0.5, dtype=torch.float64)
    random = generators(0, range(count), stream=3)
    steps = (uniform_points(images, torch.full((count,), eps).double(), norm, random) - 0.5).flatten(1)
    sizes = torch.linalg.vector_norm(steps, norm, dim=1)
    assert sizes.max() <= eps * (1 + 1e-12)
    assert stats.kstest((sizes / eps).numpy() ** 3, "uniform").pvalue > 1e-3
    octants = ((steps > 0) * torch.tensor([1, 2, 4])).sum(1).bincount(minlength=8)
    assert stats.chisquare(octants.numpy()).pvalue > 1e-3
    assert stats.kstest(steps[:1333, 0].abs().numpy(), steps[1333:2666, 2].abs().numpy()).pvalue > 1e-3


def test_points_stay_in_the_pixel_range_and_depend_on_their_image_alone() -> None:
    images = torch.rand(5, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eps = torch.linspace(0.1, 0.9, 5).double()
    found = uniform_points(images, eps, math.inf, generators(7, range(5)))
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(uniform_points(images[3:], eps[3:], math.inf, generators(7, [3, 4])), found[3:])


def drawn(shape: float, end: float, count: int = 40) -> Tensor:
    """Maxima (BATCHES, count) of a reverse Weibull distribution of scale 1."""
    return torch.from_numpy(stats.weibull_max.rvs(shape, loc=end, size=(BATCHES, count), random_state=1))


def likelihood(end: float, maxima: np.ndarray) -> float:
    """The largest log-likelihood of a reverse Weibull distribution with this end and a shape of at least 1, by SciPy."""
    found = optimize.minimize_scalar(
        lambda shape: (
            -stats.weibull_max.logpdf(maxima, shape, end, np.mean((end - maxima) ** shape) ** (1 / shape)).sum()
        ),
        bounds=(1, 100),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return -float(found.fun)


@pytest.mark.parametrize("count", [4, BATCHES])
def test_the_estimate_has_the_largest_likelihood_of_a_bounded_shape(count: int) -> None:
    """With smaller shapes the likelihood of four maxima is largest where the end meets one of them."""
    maxima = drawn(2.5, 3.0, 12)[:count]
    for column, found in zip(maxima.T.numpy(), clever(maxima).tolist(), strict=True):
        largest, spread = column.max(), np.ptp(column)
        ends = largest + spread * np.geomspace(1e-4, FARTHEST, 200)
        by_scipy = [likelihood(end, column) for end in ends]
        best = int(np.argmax(by_scipy))
        if math.isnan(found):
            assert by_scipy[-1] >= max(by_scipy) - 1e-3
        else:
            # The two grids differ by their steps.
            assert likelihood(found, column) == pytest.approx(by_scipy[best], abs=2e-3)


def test_the_estimate_is_near_the_end_of_the_distribution() -> None:
    for shape in (1.0, 2.0, 3.0):
        found = clever(drawn(shape, 3.0, 200))
        assert found.nanmedian() == pytest.approx(3.0, abs=0.15)
        # The largest maximum alone falls short of the end.
        assert (found.nanmedian() - 3).abs() <= (drawn(shape, 3.0, 200).amax(0).median() - 3).abs()


def test_the_estimate_moves_and_scales_with_the_maxima_and_is_never_below_them() -> None:
    maxima = drawn(2.0, 1.0)
    found = clever(maxima)
    torch.testing.assert_close(clever(100 * maxima + 7), 100 * found + 7, equal_nan=True)
    assert (found > maxima.amax(0))[~found.isnan()].all()


def test_maxima_that_are_alike_are_their_own_end() -> None:
    assert clever(torch.full((BATCHES, 2), 4.0, dtype=torch.float64)).tolist() == [4.0, 4.0]
    assert clever(torch.zeros(BATCHES, 1, dtype=torch.float64)).tolist() == [0.0]


def test_maxima_without_an_end_have_no_estimate() -> None:
    """An exponential tail: the largest likelihood lies at infinity."""
    quantiles = (torch.arange(BATCHES, dtype=torch.float64) + 0.5) / BATCHES
    gumbel = -(-quantiles.log()).log()
    assert clever(gumbel[:, None]).isnan().all()


def test_a_sample_is_large_enough_for_a_fit() -> None:
    assert BATCHES >= 30
    assert BATCH > 1
