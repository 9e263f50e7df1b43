"""One epoch: its images, step by step, and what is recorded of it."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from certood.data.augment import Augmentation
from certood.data.auxiliary import AuxiliarySet
from certood.data.source import to_pixels
from certood.errors import TrainingDiverged
from certood.train.alarm import watched_scores
from certood.train.assembly import Training
from certood.train.batches import EpochPlan, own_share, plan_epoch, read_batches, seeded_generator
from certood.train.candidates import pick_outliers
from certood.train.penalty import double_backward_explained
from certood.train.probe import probe
from certood.train.progress import TrainingProgress
from certood.train.step import Terms


def train_epoch(training: Training, shown: TrainingProgress) -> dict[str, Any]:
    """Train for one epoch; its row of training.csv. Raises TrainingDiverged where the loss is not finite."""
    recipe, fabric = training.recipe, training.fabric
    epoch, began = training.epochs_done, time.perf_counter()
    auxiliary = training.data.auxiliary if recipe.uses_outliers else None
    plan = plan_epoch(
        recipe.run.seed,
        epoch,
        images=len(training.data.id.train),
        batch_size=recipe.training.batch_size,
        steps=training.steps,
        auxiliary=auxiliary.pools if auxiliary is not None else (),
        candidates=recipe.sampler.candidates * recipe.training.batch_size,
    )
    torch.manual_seed(int(seeded_generator(recipe.run.seed, epoch, 2, fabric.global_rank).initial_seed()))
    training.step.train()
    record = torch.zeros(len(plan), len(Terms._fields), device=fabric.device)
    for index, (images_in, labels, images_out) in enumerate(_epoch_images(training, plan, auxiliary)):
        number = epoch * training.steps + index
        eps = training.eps(number) if training.eps is not None else 0.0
        terms: Terms = training.step(images_in, labels, images_out, eps, number)
        training.optimiser.zero_grad()
        with double_backward_explained():
            fabric.backward(terms.total)
        if recipe.optimiser.clip is not None:
            # The term of a lazy step stands for those of several: cut to the length of one, it would be lost.
            terms_in_one = max(training.step.penalty.times(number), 1)
            fabric.clip_gradients(training.step, training.optimiser, max_norm=recipe.optimiser.clip * terms_in_one)
        training.optimiser.step()
        learning_rate = float(training.schedule.get_last_lr()[0])
        training.schedule.step()
        record[index] = torch.stack(list(terms)).detach()
        _check_finite(record[index], epoch, index, learning_rate)
        shown.step()
    reduced = fabric.all_reduce(record, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    means = dict(zip(Terms._fields, reduced.mean(0).tolist(), strict=True))
    norm_in, norm_out, accuracy = probe(training)
    separation, deviation = watched_scores(training)
    return {
        "epoch": epoch + 1,
        "loss": means.pop("total"),
        **means,
        "gradient_norm_in": norm_in,
        "gradient_norm_out": norm_out,
        "accuracy": accuracy,
        "eps": eps,
        "auroc_auxiliary": separation,
        "score_deviation": deviation,
        "learning_rate": learning_rate,
        "seconds": time.perf_counter() - began,
    }


def _epoch_images(
    training: Training, plan: EpochPlan, auxiliary: AuxiliarySet | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Per step: this process's ID images and labels, and its picked outliers; augmented, in pixels, on the device."""
    recipe, fabric, train = training.recipe, training.fabric, training.data.id.train
    rank, world = fabric.global_rank, fabric.world_size
    augment = Augmentation(padding=recipe.data.crop_padding, flip=recipe.data.flip)
    generator = seeded_generator(recipe.run.seed, training.epochs_done, 3, rank, device=fabric.device)
    picker = seeded_generator(recipe.run.seed, training.epochs_done, 4, device=fabric.device)
    assert train.labels is not None
    own_id = [own_share(indices, rank, world) for indices in plan.id_indices]
    pools: Iterator[Tensor | None] = itertools.repeat(None)
    if auxiliary is not None and plan.candidate_indices is not None:
        pools = read_batches(auxiliary, [own_share(indices, rank, world) for indices in plan.candidate_indices])
    for indices, images, pool in zip(own_id, read_batches(train, own_id), pools, strict=False):
        images_in = to_pixels(augment(images.to(fabric.device), generator))
        labels = train.labels[indices].to(fabric.device)
        images_out = None
        if pool is not None:
            images_out = to_pixels(
                pick_outliers(training, images_in, augment(pool.to(fabric.device), generator), picker)
            )
        yield images_in, labels, images_out


def _check_finite(values: Tensor, epoch: int, index: int, learning_rate: float) -> None:
    if values.isfinite().all():
        return
    terms = ", ".join(f"{name} {value:.4g}" for name, value in zip(Terms._fields, values.tolist(), strict=True))
    raise TrainingDiverged(
        f"the loss is not finite at step {index + 1} of epoch {epoch + 1} ({terms}); the last whole epoch is kept. "
        f"Try a smaller optimiser.learning_rate (now {learning_rate:.4g}), "
        "objective.weight or gradient.weight"
    )
