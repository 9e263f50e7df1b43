"""Runs that the same command continues: finished ones are left as they are, started ones go on."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from certood.checkpoints import stored_identity
from certood.errors import RecipeError, RunDirectoryError
from certood.evaluation import read_evaluation
from certood.runs import RunDirectory
from certood.runs.identity import differences
from certood.train.loop import fit
from certood.train.recipe import Recipe, make_recipe
from certood.train.run_directory import check_run, differing_keys, recorded_inputs

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
    # What goes on may be an unfinished replacement of that recipe, beside a finished run of another.
    return run.recipe.is_file() and not differing_keys(run, recipe)


Inputs = Mapping[Hashable, tuple[Path, Mapping[str, str]]]


def inputs_of(recipe: Recipe) -> Hashable:
    """What of a recipe says which images a run is trained and measured on, and from which weights."""
    return recipe.data, recipe.validation_auxiliary, recipe.training.init, recipe.guard and recipe.guard.of


def inputs_of_finished(runs: Iterable[tuple[Path, Recipe]]) -> Inputs:
    """For each of the `inputs_of` these runs: one that has them, and the SHA-256 that it recorded.

    Raises RunDirectoryError where two runs found something else under the same names.
    """
    known: dict[Hashable, tuple[Path, Mapping[str, str]]] = {}
    for folder, recipe in runs:
        recorded = recorded_inputs(RunDirectory(folder))
        first, expected = known.setdefault(inputs_of(recipe), (folder, recorded))
        changed = sorted(name for name, value in recorded.items() if expected.get(name, value) != value)
        if changed:
            raise RunDirectoryError(
                f"{first} and {folder} were trained with different files under the same names ({', '.join(changed)}), and do "
                "not belong to one study: train one of them again with --overwrite"
            )
    return known


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
