"""Image sets by name: bundled, torchvision's, `npz:PATH` and `folder:PATH`."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from certood.data.digits import DIGITS_SETS, load_digits_id, load_digits_set
from certood.data.files import load_folder, load_npz
from certood.data.source import ImageSource
from certood.data.torchvision_sets import TORCHVISION_SETS, fetch_torchvision, load_torchvision
from certood.errors import DataError

TEST_SHARE = 0.2


@dataclass(frozen=True)
class IdSplits:
    """The in-distribution images in three parts that share none: training, validation (for γ), and test."""

    train: ImageSource
    validation: ImageSource
    test: ImageSource


def set_names() -> list[str]:
    """The names of all sets that need no path."""
    return ["digits", *DIGITS_SETS, *TORCHVISION_SETS]


def load_set(name: str, *, root: Path, split: str = "test", size: int | None = None) -> ImageSource:
    """The image set of that name; `split` ("train" or "test") matters where the set has official splits.

    Relative paths of `npz:` and `folder:` start at `root`; `size` resizes to size×size pixels. Nothing is downloaded:
    raises DataError that says which file was looked for, where, and how to get it.
    """
    kind, colon, path = name.partition(":")
    if colon and kind == "npz":
        return load_npz(name, root / path, size)
    if colon and kind == "folder":
        return load_folder(name, root / path, size)
    if name in TORCHVISION_SETS:
        return load_torchvision(name, root, split, size)
    if name != "digits" and name not in DIGITS_SETS:
        near = difflib.get_close_matches(name, set_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown image set {name!r}{hint} Known: {', '.join(set_names())}, npz:PATH, folder:PATH")
    if size not in (None, 8):
        raise DataError(f"the bundled digits are 8×8 pixels, but size {size} was asked for; leave data.size out")
    return load_digits_id() if name == "digits" else load_digits_set(name)


def load_id(
    name: str,
    *,
    root: Path,
    test: str | None = None,
    validation: float | int = 0.1,
    seed: int = 0,
    size: int | None = None,
) -> IdSplits:
    """In-distribution images: training, validation and test.

    The test part is the set `test` where given, the official test split where there is one, and otherwise a fifth of
    the set. `validation` is a share (< 1) or a number of training images. Splits keep the classes' shares and depend on the
    seed alone. Raises DataError where the set has no labels, or a part would be empty.
    """
    whole = load_set(name, root=root, split="train", size=size)
    train, rest = whole, None
    if test is not None:
        rest = load_set(test, root=root, split="test", size=size)
    elif name in TORCHVISION_SETS:
        rest = load_set(name, root=root, split="test", size=size)
    else:
        kept, held = stratified_split(whole, TEST_SHARE, seed)
        train, rest = whole.subset(kept), whole.subset(held)
    if rest.labels is None or rest.classes != whole.classes:
        raise DataError(
            f"the test images {rest.name} must have the classes of {name}: found {len(rest.classes)} classes "
            f"({', '.join(rest.classes[:3])}…) beside {len(whole.classes)} ({', '.join(whole.classes[:3])}…)"
        )
    kept, held = stratified_split(train, validation, seed + 1)
    return IdSplits(train.subset(kept), train.subset(held), rest)


def stratified_split(source: ImageSource, held_out: float | int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out) of a labelled set, of every class the same share; both sorted.

    `held_out` is a share below 1 or a number of images. Raises DataError where labels are absent or a part is empty.
    """
    labels = source.labels
    if labels is None:
        raise DataError(f"{source.name} has no labels; in-distribution images need them (class folders, or `labels`)")
    share = held_out if held_out < 1 else held_out / len(source)
    if share >= 1:
        raise DataError(f"{source.name}: cannot hold out {held_out} of {len(source)} images; hold out fewer")
    generator = torch.Generator().manual_seed(seed)
    held: list[Tensor] = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        order = members[torch.randperm(len(members), generator=generator)]
        held.append(order[: round(share * len(members))])
    chosen = torch.cat(held).sort().values
    if not len(chosen) or len(chosen) == len(source):
        raise DataError(f"{source.name}: holding out {held_out} of {len(source)} images leaves a part empty")
    mask = torch.ones(len(source), dtype=torch.bool)
    mask[chosen] = False
    return mask.nonzero().flatten(), chosen


def fetch(name: str, *, root: Path) -> None:
    """Download one of torchvision's sets to `root`; raises DataError for others, which are bundled or the user's own."""
    if name not in TORCHVISION_SETS:
        raise DataError(f"{name!r} cannot be fetched; these can: {', '.join(TORCHVISION_SETS)}")
    fetch_torchvision(name, root)
