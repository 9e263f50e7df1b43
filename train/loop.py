"""The training loop: plan, step, record, checkpoint; the same code on one process and on many."""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from certood.checkpoints import load_checkpoint, save_checkpoint
from certood.data.augment import Augmentation
from certood.data.source import ImageSource, to_pixels
from certood.detector import Detector
from certood.errors import RecipeError, TrainingDiverged
from certood.evaluation import evaluate, write_evaluation
from certood.inference import collect_logits
from certood.models.classifier import Classifier
from certood.runs import RunDirectory
from certood.train.batches import EpochPlan, own_share, plan_epoch, read_batches, seeded_generator, steps_in_epoch
from certood.train.optimisation import build_optimiser, build_schedule
from certood.train.penalty import GradientPenalty, Terms, TrainingStep, gradient_norms
from certood.train.progress import TrainingProgress
from certood.train.recipe import Recipe
from certood.train.run_directory import (
    check_run,
    load_state,
    prepare_run,
    save_state,
    write_recipe,
    write_rows,
)
from certood.train.samplers import Sampler, score_candidates
from certood.train.setup import (
    TrainingData,
    build_fabric,
    build_network,
    build_objective,
    build_sampler,
    load_training_data,
    on_device,
)

PROBE_IMAGES = 256
SCORING_BATCH = 512


@dataclass
class Training:
    """What a run holds while it trains: the parts, and the progress made so far."""

    fabric: Fabric
    recipe: Recipe
    data: TrainingData
    network: Classifier
    step: _FabricModule
    optimiser: _FabricOptimizer
    schedule: LRScheduler
    sampler: Sampler
    steps: int
    epochs_done: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Everything from which training resumes; tensors and plain values only."""
        return {
            "epochs_done": self.epochs_done,
            "rows": self.rows,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self.network.load_state_dict(state["network"])
        self.optimiser.optimizer.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.epochs_done, self.rows = state["epochs_done"], state["rows"]


def fit(
    recipe: Recipe, out: Path | None = None, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> Detector:
    """Train by a recipe, calibrate γ on held-out ID images, evaluate, and write a run directory.

    `out` is the run directory (default runs/NAME). With `resume`, training goes on after its last whole epoch, and on
    CPU ends with the weights of an uninterrupted run. Raises RecipeError, DataError, DeviceError, ArchitectureError or
    RunDirectoryError before anything is written, and TrainingDiverged when the loss is not finite.
    """
    out = out or Path("runs") / recipe.recipe
    fabric = build_fabric(recipe.run)
    data = load_training_data(recipe)
    steps = steps_in_epoch(len(data.id.train), recipe.training.batch_size, recipe.training.steps_per_epoch)
    network = build_network(recipe, data.id)
    fabric.launch()
    if recipe.training.batch_size % fabric.world_size:
        raise RecipeError(
            f"training.batch_size is {recipe.training.batch_size}, "
            f"which {fabric.world_size} processes cannot share evenly"
        )
    run = RunDirectory(out)
    if fabric.is_global_zero:
        check_run(run, recipe, resume=resume, overwrite=overwrite)
    with run.writing("train") if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            prepare_run(run, recipe, resume=resume, overwrite=overwrite)
            write_recipe(run, recipe, data.fingerprints)
        fabric.barrier()
        training = _assemble(fabric, recipe, data, network, steps)
        state = load_state(run, fabric.device) if resume else None
        if state is not None:
            training.restore(state)
        _train(training, run, progress=progress and fabric.is_global_zero)
        detector = _calibrated(training)
        if fabric.is_global_zero:
            save_checkpoint(detector, run.checkpoint)
            result = evaluate(
                detector,
                data.id,
                data.ood,
                batch_size=SCORING_BATCH,
                device=fabric.device,
                seed=recipe.run.seed,
                progress=False,
            )
            write_evaluation(run.evaluation, result)
        fabric.barrier()
    return load_checkpoint(run.checkpoint)


def _assemble(fabric: Fabric, recipe: Recipe, data: TrainingData, network: Classifier, steps: int) -> Training:
    data = TrainingData(
        replace(data.id, train=on_device(data.id.train, fabric.device)),
        on_device(data.auxiliary, fabric.device)
        if data.auxiliary is not None and recipe.uses_outliers
        else data.auxiliary,
        data.ood,
    )
    penalty = GradientPenalty(recipe.gradient.weight, recipe.gradient.mode, recipe.gradient.step)
    step = TrainingStep(network, build_objective(recipe.objective), penalty)
    optimiser = build_optimiser(step.parameters(), recipe.optimiser)
    schedule = build_schedule(optimiser, recipe.optimiser, steps=steps, epochs=recipe.training.epochs)
    wrapped, wrapped_optimiser = fabric.setup(step, optimiser)
    return Training(
        fabric=fabric,
        recipe=recipe,
        data=data,
        network=network,
        step=wrapped,
        optimiser=wrapped_optimiser,
        schedule=schedule,
        sampler=build_sampler(recipe.sampler),
        steps=steps,
    )


def _train(training: Training, run: RunDirectory, *, progress: bool) -> None:
    recipe, fabric = training.recipe, training.fabric
    epochs = recipe.training.epochs
    writer = _event_writer(run.folder) if recipe.run.tensorboard and fabric.is_global_zero else None
    done = training.epochs_done * training.steps
    with TrainingProgress(recipe.recipe, epochs * training.steps, done, enabled=progress) as shown:
        while training.epochs_done < epochs:
            row = _train_epoch(training, shown)
            training.epochs_done += 1
            training.rows.append(row)
            if fabric.is_global_zero:
                save_state(run, training.state())
                write_rows(run, training.rows)
            if writer is not None:
                for name, value in row.items():
                    writer.add_scalar(name, value, row["epoch"])
            shown.epoch(row, epochs)
    if writer is not None:
        writer.close()


def _train_epoch(training: Training, shown: TrainingProgress) -> dict[str, Any]:
    recipe, fabric = training.recipe, training.fabric
    epoch, began = training.epochs_done, time.perf_counter()
    auxiliary = training.data.auxiliary if recipe.uses_outliers else None
    plan = plan_epoch(
        recipe.run.seed,
        epoch,
        images=len(training.data.id.train),
        batch_size=recipe.training.batch_size,
        steps=training.steps,
        auxiliary=len(auxiliary) if auxiliary is not None else 0,
        candidates=recipe.sampler.candidates * recipe.training.batch_size,
    )
    torch.manual_seed(int(seeded_generator(recipe.run.seed, epoch, 2, fabric.global_rank).initial_seed()))
    training.step.train()
    record = torch.zeros(len(plan), len(Terms._fields), device=fabric.device)
    for index, (images_in, labels, images_out) in enumerate(_epoch_images(training, plan, auxiliary)):
        terms: Terms = training.step(images_in, labels, images_out)
        training.optimiser.zero_grad()
        fabric.backward(terms.total)
        training.optimiser.step()
        learning_rate = training.schedule.get_last_lr()[0]
        training.schedule.step()
        record[index] = torch.stack(list(terms)).detach()
        _check_finite(record[index], epoch, index, recipe)
        shown.step()
    reduced = fabric.all_reduce(record, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    loss, cross_entropy, outlier, gradient = reduced.mean(0).tolist()
    norm_in, norm_out, accuracy = _probe(training)
    return {
        "epoch": epoch + 1,
        "loss": loss,
        "cross_entropy": cross_entropy,
        "outlier": outlier,
        "gradient": gradient,
        "gradient_norm_in": norm_in,
        "gradient_norm_out": norm_out,
        "accuracy": accuracy,
        "learning_rate": learning_rate,
        "seconds": time.perf_counter() - began,
    }


def _epoch_images(
    training: Training, plan: EpochPlan, auxiliary: ImageSource | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Per step: this process's ID images and labels, and its picked outliers; augmented, in pixels, on the device."""
    recipe, fabric, train = training.recipe, training.fabric, training.data.id.train
    rank, world = fabric.global_rank, fabric.world_size
    augment = Augmentation(padding=recipe.data.crop_padding, flip=recipe.data.flip)
    generator = seeded_generator(recipe.run.seed, training.epochs_done, 3, rank, device=fabric.device)
    picker = seeded_generator(recipe.run.seed, training.epochs_done, 4, device=fabric.device)
    assert train.labels is not None
    own_id = [own_share(indices, rank, world) for indices in plan.id_indices]
    own_candidates = (
        [own_share(indices, rank, world) for indices in plan.candidate_indices]
        if auxiliary is not None and plan.candidate_indices is not None
        else []
    )
    candidates = read_batches(auxiliary, own_candidates) if auxiliary is not None else itertools.repeat(None)
    for index, (images, pool) in enumerate(zip(read_batches(train, own_id), candidates, strict=False)):
        images_in = to_pixels(augment(images.to(fabric.device), generator))
        labels = train.labels[own_id[index]].to(fabric.device)
        images_out = None
        if auxiliary is not None and pool is not None and plan.candidate_indices is not None:
            picked = _pick(training, pool.to(fabric.device), picker)
            chosen = pool if world == 1 else auxiliary.batch(plan.candidate_indices[index])
            mine = own_share(picked, rank, world)
            images_out = to_pixels(augment(chosen[mine.to(chosen.device)].to(fabric.device), generator))
        yield images_in, labels, images_out


def _pick(training: Training, own_pool: Tensor, generator: torch.Generator) -> Tensor:
    """Indices into the global candidate pool of a step; every process scores its share and all pick the same."""
    fabric, sampler, recipe = training.fabric, training.sampler, training.recipe
    count = recipe.sampler.outliers * recipe.training.batch_size
    pool = len(own_pool) * fabric.world_size
    scores, features = torch.zeros(pool, device=fabric.device), None
    if sampler.needs_scores:
        with fabric.autocast():
            own_scores, own_features = score_candidates(
                training.network, to_pixels(own_pool), training.step.objective.score, SCORING_BATCH
            )
        scores, features = _gathered(fabric, own_scores), _gathered(fabric, own_features)
    picked = sampler(scores, features, count, generator)
    return fabric.broadcast(picked) if fabric.world_size > 1 else picked


def _gathered(fabric: Fabric, own: Tensor) -> Tensor:
    """The shares of all processes, one after the other, as every process's candidates stand in the global pool."""
    gathered = fabric.all_gather(own)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1) if fabric.world_size > 1 else own


def _check_finite(values: Tensor, epoch: int, index: int, recipe: Recipe) -> None:
    if values.isfinite().all():
        return
    terms = ", ".join(f"{name} {value:.4g}" for name, value in zip(Terms._fields, values.tolist(), strict=True))
    raise TrainingDiverged(
        f"the loss is not finite at step {index + 1} of epoch {epoch + 1} ({terms}); the last whole epoch is kept. "
        f"Try a smaller optimiser.learning_rate (now {recipe.optimiser.learning_rate}), "
        "objective.weight or gradient.weight"
    )


def _probe(training: Training) -> tuple[float, float, float]:
    """Mean ‖∇ₓS‖₂ in eval mode on a fixed batch of held-out ID images and of auxiliary outliers, and accuracy.

    Accuracy is that on the validation images. Outliers absent: not a number.
    """
    network, device = training.network, training.fabric.device
    score = training.step.objective.score
    network.eval()
    validation = training.data.id.validation
    means = []
    for source in (validation, training.data.auxiliary):
        if source is None:
            means.append(math.nan)
            continue
        chosen = torch.linspace(0, len(source) - 1, min(len(source), PROBE_IMAGES)).long()
        means.append(gradient_norms(network, to_pixels(source.batch(chosen).to(device)), score).mean().item())
    logits = collect_logits(network, validation, batch_size=SCORING_BATCH, device=device, progress=False)
    assert validation.labels is not None
    predicted = logits[:, : len(validation.classes)].argmax(1).cpu()
    return means[0], means[1], (predicted == validation.labels).double().mean().item()


def _calibrated(training: Training) -> Detector:
    """The trained network with its score and the γ that accepts 95 % of the held-out ID images."""
    network, recipe, data = training.network.eval(), training.recipe, training.data
    uncalibrated = Detector(
        model=network,
        score=training.step.objective.score,
        threshold=None,
        architecture=recipe.model.architecture,
        input_shape=data.id.train.shape,
        classes=data.id.train.classes,
        mean=network.interface.mean,
        std=network.interface.std,
        options=dict(recipe.model.options),
        absent_class=recipe.absent_class,
        split=data.id.split,
    )
    return uncalibrated.calibrated(data.id.validation, batch_size=SCORING_BATCH, device=training.fabric.device)


def _event_writer(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise RecipeError("run.tensorboard needs TensorBoard: pip install 'certood[tensorboard]'") from error
    return SummaryWriter(str(out / "tensorboard"))
