"""A run from its recipe to its evaluation; the same code on one process and on many."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from certood.checkpoints import load_checkpoint, save_checkpoint
from certood.detector import Detector
from certood.errors import CheckpointError, RecipeError
from certood.evaluation import evaluate, write_evaluation
from certood.runs import RunDirectory
from certood.runs.directory import Part
from certood.runs.kinds import automatic, tracker_runs
from certood.train.alarm import check_score
from certood.train.assembly import Training, assemble
from certood.train.automatic import settle, settle_precision, with_numbers
from certood.train.epoch import train_epoch
from certood.train.guarding import check_guarded, input_fingerprints, join, open_guarded
from certood.train.progress import TrainingProgress
from certood.train.recipe import Recipe
from certood.train.run_directory import (
    check_run,
    load_state,
    prepare_run,
    record_trackers,
    resumed,
    save_state,
    write_recipe,
    write_rows,
)
from certood.train.setup import build_fabric, build_network, count_steps, load_training_data, require_start
from certood.train.tracking import Tracking, require_trackers, tracked
from certood.waiting import busy


def fit(
    recipe: Recipe, out: Path | None = None, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> Detector:
    """Train by a recipe, calibrate γ on held-out ID images, evaluate, and write a run directory.

    `out` is the run directory (default runs/NAME). A recipe of a guard trains it for the detector that `guard.of` names, and
    writes both as one. Numbers that the recipe leaves to its starting network are settled first. With `resume`, training goes
    on after its last whole epoch, and on CPU ends with the weights of an uninterrupted run. Raises RecipeError, DataError,
    DeviceError, ArchitectureError or RunDirectoryError before anything is written, TrainingDiverged when the loss is not
    finite, and ScoreCollapsed when certified training makes the score nearly constant.
    """
    run = RunDirectory(out or Path("runs") / recipe.recipe)
    require_start(recipe)
    require_trackers(recipe)
    recorded = automatic(resumed(run, recipe).recipe_tables()) if resume and not run.empty else {}
    recipe, auto = settle_precision(recipe, recorded)
    fabric = build_fabric(recipe.run)
    guarded = open_guarded(recipe)
    with busy("Reading image sets", enabled=progress):
        data = load_training_data(recipe, None if guarded is None else guarded.split)
    if guarded is not None:
        check_guarded(guarded, data, recipe)
    steps = count_steps(recipe, data)
    network = build_network(recipe, data.id)
    fingerprints = input_fingerprints(recipe, data, guarded)
    fabric.launch()
    check_shares(recipe, fabric.world_size)
    if fabric.is_global_zero:
        check_run(run, recipe, resume=resume, overwrite=overwrite)
    with run.writing("train") if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            auto |= {} if resume else settle(recipe, data, network, fabric.device)
            place = prepare_run(run, recipe, resume=resume, overwrite=overwrite, fingerprints=fingerprints)
            if resume:
                auto |= {key: dict(found) for key, found in automatic(place.recipe_tables()).items()}
            else:
                write_recipe(place, with_numbers(recipe, auto), fingerprints, auto)
        recipe = with_numbers(recipe, fabric.broadcast(auto))
        place = RunDirectory(Path(fabric.broadcast(str(place.folder) if fabric.is_global_zero else "")))
        training = assemble(fabric, recipe, data, network, steps)
        state = load_state(place, fabric.device, recipe.training.epochs) if resume else None
        if state is not None:
            restore(training, state, place)
        known = tracker_runs(place.recipe_tables()) if resume else {}
        # A state without it is of a version that told whom it knew every epoch before it was stored.
        told = (state or {}).get("told", dict.fromkeys(known, training.epochs_done))
        begun = partial(record_trackers, place)
        with tracked(recipe, run.folder, known, told, begun, enabled=fabric.is_global_zero) as tracking:
            _train(training, place, tracking, progress=progress and fabric.is_global_zero)
            detector = _calibrated(training) if guarded is None else join(training, guarded)
            if fabric.is_global_zero:
                save_checkpoint(detector, place.checkpoint)
                result = evaluate(
                    detector,
                    data.id,
                    data.ood,
                    device=fabric.device,
                    seed=recipe.run.seed,
                    progress=False,
                )
                write_evaluation(place.evaluation, result)
                tracking.evaluated(training.epochs_done, result)
        if fabric.is_global_zero and place != run:
            run.adopt(Part.TRAINING)
        fabric.barrier()
    return load_checkpoint(run.checkpoint, architecture=detector.architecture)


def check_shares(recipe: Recipe, processes: int) -> None:
    """Raise RecipeError where so many processes cannot share the ID images of a step evenly."""
    if recipe.training.batch_size % processes:
        raise RecipeError(
            f"training.batch_size is {recipe.training.batch_size}, which {processes} processes cannot share evenly"
        )


def restore(training: Training, state: dict[str, Any], run: RunDirectory) -> None:
    """Continue from a stored state; raises CheckpointError where it does not fit the network and the optimiser."""
    try:
        training.restore(state)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{run.training_state} does not fit its recipe ({' '.join(str(error).split())[:200]}); "
            "start again with --overwrite"
        ) from error
    if training.fabric.is_global_zero:
        # A kill may have come between the state and these rows, which the state has as well.
        write_rows(run, training.rows)


def _train(training: Training, run: RunDirectory, tracking: Tracking, *, progress: bool) -> None:
    recipe, fabric = training.recipe, training.fabric
    epochs = recipe.training.epochs
    done = training.epochs_done * training.steps
    with TrainingProgress(recipe.recipe, epochs * training.steps, done, enabled=progress) as shown:
        # A resumed run may have ended before its trackers were told, and with a score that is nearly constant.
        if fabric.is_global_zero:
            _tell(training, run, tracking)
        check_score(training.rows)
        while training.epochs_done < epochs:
            row = train_epoch(training, shown)
            training.epochs_done += 1
            training.rows.append(row)
            if fabric.is_global_zero:
                save_state(run, training.state() | {"told": tracking.told})
                write_rows(run, training.rows)
                _tell(training, run, tracking)
            shown.epoch(row, epochs)
            check_score(training.rows)


def _tell(training: Training, run: RunDirectory, tracking: Tracking) -> None:
    """Tell the trackers the epochs that they were not told yet, and store how many each was told, also where one fails.

    A kill before that is stored repeats an epoch there; none is left out.
    """
    before = dict(tracking.told)
    try:
        tracking.epochs(training.rows)
    finally:
        if tracking.told != before:
            save_state(run, training.state() | {"told": tracking.told})


def _calibrated(training: Training) -> Detector:
    """The trained network with its score and the γ that accepts 95 % of the held-out ID images."""
    recipe, data = training.recipe, training.data
    network, changed = training.network.eval().stored()
    uncalibrated = Detector(
        model=network,
        score=training.step.objective.score,
        threshold=None,
        architecture=recipe.model.architecture,
        input_shape=data.id.train.shape,
        classes=data.id.train.classes,
        mean=network.interface.mean,
        std=network.interface.std,
        options={**recipe.model.options, **changed},
        absent_class=recipe.absent_class,
        split=data.id.split,
    )
    return uncalibrated.calibrated(data.id.validation, device=training.fabric.device)
