"""A run from its recipe to its evaluation; the same code on one process and on many."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from certood.checkpoints import load_checkpoint, save_checkpoint
from certood.detector import Detector
from certood.errors import RecipeError
from certood.evaluation import evaluate, write_evaluation
from certood.runs import RunDirectory
from certood.train.assembly import Training, assemble
from certood.train.batches import steps_in_epoch
from certood.train.candidates import SCORING_BATCH
from certood.train.epoch import train_epoch
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
from certood.train.setup import build_fabric, build_network, load_training_data


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
        training = assemble(fabric, recipe, data, network, steps)
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
    return load_checkpoint(run.checkpoint, architecture=recipe.model.architecture)


def _train(training: Training, run: RunDirectory, *, progress: bool) -> None:
    recipe, fabric = training.recipe, training.fabric
    epochs = recipe.training.epochs
    writer = _event_writer(run.folder) if recipe.run.tensorboard and fabric.is_global_zero else None
    done = training.epochs_done * training.steps
    with TrainingProgress(recipe.recipe, epochs * training.steps, done, enabled=progress) as shown:
        while training.epochs_done < epochs:
            row = train_epoch(training, shown)
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
