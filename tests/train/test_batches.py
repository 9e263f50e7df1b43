"""Index streams: whole shuffled passes that are a function of seed and epoch."""

import pytest
import torch

from certood.data.auxiliary import Pool
from certood.data.source import ImageSet
from certood.errors import RecipeError
from certood.train.batches import own_share, plan_epoch, read_batches, seeded_generator, steps_in_epoch


def plan(seed: int = 0, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    made = plan_epoch(
        seed, epoch, images=20, batch_size=6, steps=3, auxiliary=[Pool(torch.arange(10), 1.0)], candidates=8
    )
    assert made.candidate_indices is not None
    return made.id_indices, made.candidate_indices


def test_an_epoch_visits_no_image_twice_and_outliers_evenly() -> None:
    images, candidates = plan()
    assert images.shape == (3, 6)
    assert len(images.unique()) == 18
    assert candidates.shape == (3, 8)
    assert candidates.flatten().bincount(minlength=10).tolist().count(0) == 0
    assert int(candidates.flatten().bincount().max()) <= 3


def test_the_plan_depends_on_seed_and_epoch_alone() -> None:
    assert all(torch.equal(a, b) for a, b in zip(plan(), plan(), strict=True))
    assert not torch.equal(plan()[0], plan(epoch=1)[0])
    assert not torch.equal(plan()[1], plan(seed=1)[1])
    assert not torch.equal(plan(seed=0, epoch=1)[0], plan(seed=1, epoch=0)[0])


def test_generators_of_distinct_parts_are_distinct() -> None:
    draws = {torch.rand((), generator=seeded_generator(*parts)).item() for parts in [(0, 1), (1, 0), (0, 0), (0, 1, 2)]}
    assert len(draws) == 4


def test_shares_partition_a_batch() -> None:
    batch = torch.arange(8)
    assert torch.equal(torch.cat([own_share(batch, rank, 4) for rank in range(4)]), batch)


def test_a_batch_larger_than_the_set_is_refused() -> None:
    assert steps_in_epoch(100, 32, None) == 3
    assert steps_in_epoch(100, 32, 2) == 2
    with pytest.raises(RecipeError, match="batch_size is 101, but there are only 100"):
        steps_in_epoch(100, 101, None)


class Streamed:
    """A set that is not in memory, as the reader sees it."""

    in_memory = False

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return self.images[indices]


@pytest.mark.parametrize("streamed", [False, True])
def test_batches_come_in_order(streamed: bool) -> None:
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1)
    source = Streamed(images) if streamed else ImageSet("x", images)
    wanted = [torch.tensor([3, 1]), torch.tensor([0]), torch.tensor([11, 2])]
    found = [batch.flatten().tolist() for batch in read_batches(source, wanted)]  # type: ignore[arg-type]
    assert found == [[3, 1], [0], [11, 2]]
