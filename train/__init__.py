"""Training: objectives, gradient penalty, outlier samplers, recipes and the training loop.

`fit` is the way in. `recipe` holds the schema of recipes; `samplers`, `objectives`, `optimisers` and `schedules` are
families with a file for every member; `step` is the loss of a step, with its gradient term in `penalty`; `loop` is a whole run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from certood.detector import Detector
    from certood.train.recipe import Recipe

__all__ = ["fit"]


def fit(
    recipe: "Recipe | Path | str" = "digits-greg-plus",
    out: Path | str | None = None,
    *,
    settings: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> "Detector":
    """Train by a recipe, calibrate γ, evaluate, and write a run directory, as `certood train` does; the detector.

    `recipe` is a built-in name, the path of a TOML file, or a Recipe; `settings` are changes of it such as
    "training.epochs=5"; `out` is the run directory (default runs/NAME). Raises RecipeError, DataError, DeviceError,
    ArchitectureError or RunDirectoryError before anything is written, and TrainingDiverged when the loss is not finite.
    """
    from certood.train.loop import fit as train  # noqa: PLC0415 (importing certood.train stays light)
    from certood.train.recipe import Recipe, load_recipe, make_recipe  # noqa: PLC0415

    chosen = (
        make_recipe(recipe.to_toml(), settings) if isinstance(recipe, Recipe) else load_recipe(str(recipe), settings)
    )
    return train(chosen, None if out is None else Path(out), resume=resume, overwrite=overwrite, progress=progress)
