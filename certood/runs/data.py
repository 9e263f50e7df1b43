"""The image sets of a finished run, read from its recipe.toml, or those that the user names."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certood.data import IdSplits, ImageSource, Split, load_id, load_set, require_disjoint, require_named
from certood.data.overlap import may_share
from certood.data.splits import seen_in_training
from certood.errors import DataError
from certood.runs.directory import RunDirectory


def load_run_data(
    run: Path,
    *,
    id_name: str | None = None,
    id_test: str | None = None,
    ood: Sequence[str] = (),
    root: Path | None = None,
    recorded: Split | None = None,
    allow_shared: Sequence[str] = (),
) -> tuple[IdSplits, dict[str, ImageSource]]:
    """ID splits and OOD sets of a run, each replaced by what is given here.

    The splits are those of the training (same seed and share), so that γ never sees a test image; runs from before
    `data.split_seed` was a key were split by `run.seed`. The split that a checkpoint carries is `recorded`, and wins.
    Sets that are named here must not share pictures with each other's uses, or with the run's auxiliary outliers as
    far as these can be read; `allow_shared` names sets that may, beside those of the run. Raises DataError where they do,
    where another division than the recorded one would hold out images that were trained on, and where nothing says which ID
    images to take.
    """
    tables = RunDirectory.of(run).recipe_tables()
    data: dict[str, Any] = tables.get("data", {})
    name = id_name or data.get("id") or (recorded.id if recorded is not None else None)
    if name is None:
        raise DataError(f"{run} has no record of its in-distribution images; name them with --id")
    own = name == data.get("id")
    root = root or Path(data.get("root", "data"))
    size = data.get("size", recorded.size if recorded is not None else None)
    held_out = data.get("validation", 0.1)
    splits = load_id(
        name,
        root=root,
        test=id_test or (data.get("id_test") if own else None),
        validation=held_out if held_out < 1 else int(held_out),
        seed=data.get("split_seed", tables.get("run", {}).get("seed", 0)),
        size=size,
        recorded=recorded,
    )
    allowed = (*data.get("allow_shared", ()), *allow_shared)
    if recorded is not None and splits.split != recorded and not may_share(name, allowed):
        seen = seen_in_training(recorded, splits, root=root)
        if seen:
            raise DataError(
                f"{run} was trained on {seen} of the images of {name} that would be its validation or test images here: leave "
                f"--id out for the detector's own split, name other images, or allow it by --allow-shared {name}"
            )
    sets = {one: load_set(one, root=root, split="test", size=size) for one in ood or data.get("ood", ())}
    if not own or ood or id_test or allow_shared:
        # What the run itself names was compared before it was trained.
        outliers = {"auxiliary outliers": _auxiliary(data, root, size)}
        roles = splits.roles | outliers | {"test outliers": [*sets.values()]}
        require_named(allow_shared, roles)
        require_disjoint(roles, allowed)
    return splits, sets


def _auxiliary(data: dict[str, Any], root: Path, size: int | None) -> list[ImageSource]:
    """The auxiliary outliers of a run that are still there."""
    listed = data.get("auxiliary", ())
    found = []
    for item in [listed] if isinstance(listed, str) else listed:
        name = item if isinstance(item, str) else item["set"]
        with contextlib.suppress(DataError):
            found.append(load_set(name, root=root, split="train", size=size))
    return found
