"""The run directory of a modified detector."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch

from certood.checkpoints import save_checkpoint
from certood.data import IdSplits, ImageSource
from certood.detector import Detector
from certood.errors import RunDirectoryError
from certood.evaluation import evaluate, write_evaluation
from certood.files import write_atomically
from certood.modifications.base import Modification
from certood.runs.directory import Part, RunDirectory
from certood.runs.identity import detector_identity

TABLE = "modification"


def write_modified(
    modification: Modification,
    detector: Detector,
    splits: IdSplits,
    ood: Mapping[str, ImageSource],
    run: Path,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[Detector, dict[str, Any]]:
    """Fit a modification on the training images and γ on the validation images; write detector and evaluation to `out`.

    Returns both; the evaluation is by every score, on the ID test images and the OOD sets.

    recipe.toml is that of `run`, where there is one, and says in a table `modification` what was changed, and of which detector.
    Raises RunDirectoryError where `out` holds anything and is not to be overwritten, or is the run itself.
    """
    files, of = RunDirectory(out), RunDirectory.of(run)
    if out.resolve() == of.folder.resolve():
        raise RunDirectoryError(f"{out} is the run that is modified; choose another --out")
    if not files.empty and not (overwrite and files.checkpoint.is_file()):
        raise RunDirectoryError(
            f"{out} is not empty; choose another --out" + ("" if overwrite else ", or --overwrite a run")
        )
    found = modification(detector, splits.train, device=device, progress=progress)
    found = found.calibrated(splits.validation, device=device, progress=progress)
    tables = of.recipe_tables()
    with files.writing("modify"):
        new = files.replacement(Part.TRAINING)
        files.discard_replacement(Part.TRAINING)
        new.folder.mkdir()
        if tables:
            record = {**modification.description, "of": detector_identity(detector)["sha256"]}
            write_atomically(new.recipe, tomli_w.dumps(tables | {TABLE: record}))
        save_checkpoint(found, new.checkpoint)
        result = evaluate(found, splits, ood, device=device, progress=progress)
        write_evaluation(new.evaluation, result)
        files.adopt(Part.TRAINING)
    return found, result
