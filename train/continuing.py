"""Runs that the same command continues: finished ones are left as they are, started ones go on."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from certood.checkpoints import stored_identity
from certood.errors import RecipeError, RunDirectoryError
from certood.evaluation import read_evaluation
from certood.runs import RunDirectory
from certood.runs.identity import differences
from certood.runs.kinds import recorded_hashes, trained_on
from certood.train.loop import fit
from certood.train.recipe import Recipe, make_recipe
from certood.train.run_directory import check_run, resumed

# More seeds than that are a mistyped range.
MOST_SEEDS = 1000


def is_finished(recipe: Recipe, out: Path) -> bool:
    """Whether the folder holds a run that is trained, and evaluated with the weights that it holds.

    Raises RunDirectoryError where that is a run of another recipe, of another seed or length for example.
    """
    run = RunDirectory(out)
    evaluated = read_evaluation(run.evaluation)
    if evaluated is None or not run.checkpoint.is_file() or "detector" not in evaluated:
        return False
    if differences(evaluated["detector"], stored_identity(out)):
        return False
    check_run(run, recipe, resume=True, overwrite=False)
    # What goes on may be an unfinished replacement, beside a finished run.
    return resumed(run, recipe) == run


# What finished runs were trained on: a run that has it, and its SHA-256, by the name and by what of the recipe decides about it.
Inputs = Mapping[Hashable, tuple[Path, str]]


def inputs_of(recipe: Recipe, recorded: Mapping[str, str]) -> dict[tuple[str, Hashable], str]:
    """The SHA-256 of what a run was trained on, by the name and by what of its recipe decides about it."""
    guarded = recipe.guard and recipe.guard.of
    decides: dict[str, Hashable] = {
        "training.init": (recipe.training.init, repr(recipe.model)),
        "id-train": guarded,
        "id-validation": guarded,
        "guarded-detector": guarded,
    }
    return {
        (name, decides.get(name, recipe.validation_auxiliary)): found for name, found in trained_on(recorded).items()
    }


def inputs_of_finished(runs: Iterable[tuple[Path, Recipe]]) -> Inputs:
    """What these runs were trained on; raises RunDirectoryError where two found different things under one name."""
    known: dict[Hashable, tuple[Path, str]] = {}
    for folder, recipe in runs:
        recorded = recorded_hashes(RunDirectory(folder).recipe_tables())
        require_inputs(known, recipe, recorded, str(folder))
        for key, found in inputs_of(recipe, recorded).items():
            known.setdefault(key, (folder, found))
    return known


def require_inputs(known: Inputs, recipe: Recipe, recorded: Mapping[str, str], what: str) -> None:
    """Raise RunDirectoryError where `what`, of this recipe, is trained on something else than the finished runs were."""
    for (name, decides), found in inputs_of(recipe, recorded).items():
        folder, expected = known.get((name, decides), (None, found))
        if found != expected:
            raise RunDirectoryError(
                f"{name} is not for {what} what it was for {folder}: it has changed, and both do not belong to one study; "
                "restore it, or train again what does not fit (remove its folder, or certood train --overwrite)"
            )


def fit_or_continue(recipe: Recipe, out: Path, *, overwrite: bool = False, progress: bool = True) -> None:
    """Train and evaluate by a recipe from the start, or from where the run in the folder stopped; raises what `fit` raises."""
    fit(recipe, out, resume=_continues(RunDirectory(out), overwrite), overwrite=overwrite, progress=progress)


def parse_seeds(text: str) -> list[int]:
    """Seeds as "0-4", "3" or "0-2,7", each once, in the order given; raises RecipeError."""
    found: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= MOST_SEEDS:
            raise RecipeError(f"expected seeds such as 0-4 or 0,1,7 (at most {MOST_SEEDS}), got {text!r}")
        found |= dict.fromkeys(range(first, last + 1))
    if len(found) > MOST_SEEDS:
        raise RecipeError(f"expected at most {MOST_SEEDS} seeds, got {len(found)}")
    return list(found)


def runs_of_seeds(recipe: Recipe, out: Path, seeds: Sequence[int], *, overwrite: bool = False) -> dict[Path, Recipe]:
    """The recipe of every seed by its run directory, OUT-SEED.

    They differ in `run.seed` alone: the split of the ID set is that of `data.split_seed`, so that all are tested on the same
    images. Raises RunDirectoryError, before anything is loaded, where a directory holds something else than a run of its recipe.
    """
    runs = {out.with_name(f"{out.name}-{seed}"): make_recipe(recipe.to_toml(), [f"run.seed={seed}"]) for seed in seeds}
    for folder, one in runs.items():
        run = RunDirectory(folder)
        check_run(run, one, resume=_continues(run, overwrite), overwrite=overwrite)
    return runs


def _continues(run: RunDirectory, overwrite: bool) -> bool:
    """Whether there is a run to go on with."""
    return not overwrite and not run.empty
