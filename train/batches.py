"""Which images enter which step: index streams that depend on nothing but seed, epoch and step."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from certood.data.auxiliary import Pool, draw
from certood.data.source import ImageSource
from certood.errors import RecipeError


def seeded_generator(seed: int, *parts: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of these numbers alone.

    Streams of different numbers differ, but for zeros at the end: (1, 5) and (1, 5, 0) are one.
    """
    state = np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state) % 2**63)


@dataclass(frozen=True)
class EpochPlan:
    """The indices of an epoch: ID images (steps, batch), and candidate outliers (steps, candidates) or None."""

    id_indices: Tensor
    candidate_indices: Tensor | None

    def __len__(self) -> int:
        return len(self.id_indices)


def steps_in_epoch(images: int, batch_size: int, limit: int | None) -> int:
    """Whole batches in an epoch; raises RecipeError where there is none."""
    if batch_size > images:
        raise RecipeError(
            f"training.batch_size is {batch_size}, but there are only {images} ID training images: make it smaller"
        )
    return min(images // batch_size, limit or images)


def plan_epoch(
    seed: int, epoch: int, *, images: int, batch_size: int, steps: int, auxiliary: Sequence[Pool], candidates: int
) -> EpochPlan:
    """A shuffled pass over the ID images, and as many candidates a step, in shuffled passes over each pool of outliers."""
    order = torch.randperm(images, generator=seeded_generator(seed, epoch, 0))
    id_indices = order[: steps * batch_size].view(steps, batch_size)
    if not auxiliary or not candidates:
        return EpochPlan(id_indices, None)
    pool = draw(auxiliary, steps * candidates, seeded_generator(seed, epoch, 1))
    return EpochPlan(id_indices, pool.view(steps, candidates))


def own_share(indices: Tensor, rank: int, world: int) -> Tensor:
    """The slice of a global batch that belongs to this process; what does not divide evenly is dropped."""
    each = len(indices) // world
    return indices[rank * each : (rank + 1) * each]


def read_batches(source: ImageSource, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The images of these index batches; of a streamed set, the next batch is read while the present one is used."""
    if source.in_memory:
        yield from map(source.batch, batches)
        return
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = None
        for indices in batches:
            following = reader.submit(source.batch, indices)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
