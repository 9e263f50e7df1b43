"""Image sets by name: bundled, torchvision's, `npz:PATH` and `folder:PATH`."""

import difflib
from pathlib import Path

from certood.data.digits import DIGITS_SETS, load_digits_id, load_digits_set
from certood.data.files import load_folder, load_npz
from certood.data.source import ImageSource
from certood.data.torchvision_sets import TORCHVISION_SETS, fetch_torchvision, load_torchvision
from certood.errors import DataError


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


def has_official_test(name: str) -> bool:
    """Whether a set comes with test images of its own."""
    return name in TORCHVISION_SETS


def fetch(name: str, *, root: Path) -> None:
    """Download one of torchvision's sets to `root`; raises DataError for others, which are bundled or the user's own."""
    if name not in TORCHVISION_SETS:
        raise DataError(f"{name!r} cannot be fetched; these can: {', '.join(TORCHVISION_SETS)}")
    fetch_torchvision(name, root)
