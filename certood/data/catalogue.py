"""Image sets by name: bundled, torchvision's, and the user's own by kind and path; each with options (see `SetName`)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from certood.bridges.pytorch_ood_sets import PREFIX as PYTORCH_OOD
from certood.bridges.pytorch_ood_sets import load_pytorch_ood
from certood.data.digits import DIGITS_SETS, load_digits
from certood.data.folder import load_folder
from certood.data.imglist import load_imglist
from certood.data.names import SetName, selected_classes
from certood.data.npz import load_npz
from certood.data.request import Request
from certood.data.source import ImageSource
from certood.data.torchvision_sets import TORCHVISION_SETS, fetch_torchvision, load_torchvision
from certood.errors import DataError
from certood.suggestions import did_you_mean


@dataclass(frozen=True)
class NamedSet:
    """A set that has a name of its own: what it is, how many images it has (train / test), and how to get it.

    With `fetch` it is downloaded to a folder; with `official_test` it has test images that are not those of training.
    """

    title: str
    load: Callable[[Request], ImageSource]
    sizes: str = ""
    official_test: bool = False
    fetch: Callable[[str, Path], None] | None = None
    any_size: bool = False


NAMED_SETS: dict[str, NamedSet] = {name: NamedSet("bundled", load_digits) for name in DIGITS_SETS} | {
    name: NamedSet(known.title, load_torchvision, known.sizes, True, fetch_torchvision, known.shape is None)
    for name, known in TORCHVISION_SETS.items()
}


@dataclass(frozen=True)
class KindOfSet:
    """Sets that are named KIND:PATH: what they are, how they are loaded, and what stands for PATH where it is explained."""

    title: str
    load: Callable[[Request], ImageSource]
    argument: str = "PATH"


KINDS: dict[str, KindOfSet] = {
    "npz": KindOfSet(
        "uint8 images, labels, classes", lambda request: load_npz(request.name, request.path, request.form)
    ),
    "folder": KindOfSet(
        "pictures in class folders, or flat", lambda request: load_folder(request.name, request.path, request.form)
    ),
    "imglist": KindOfSet(
        "OpenOOD's lists of pictures",
        lambda request: load_imglist(request.name, request.path, request.root, request.form),
        "FILE",
    ),
    PYTORCH_OOD: KindOfSet("an image set of pytorch-ood", load_pytorch_ood, "NAME"),
}


def set_names() -> list[str]:
    """The names of all sets that need no path."""
    return list(NAMED_SETS)


def load_set(name: str, *, root: Path, split: str = "test", size: int | None = None) -> ImageSource:
    """The image set of that name, e.g. `npz:letters.npz?classes=a-m&size=28` (see `SetName` for the options).

    `split` ("train" or "test") matters where the set has official splits. Relative paths start at `root`; `size` resizes to
    size×size pixels where the name itself says nothing of size. Nothing is downloaded: raises DataError that says which file was
    looked for, where, and how to get it.
    """
    parsed = SetName.parse(name, size)
    load = _loader(parsed.source)
    if load is None:
        hint = did_you_mean(parsed.source, set_names())
        kinds = [f"{kind}:{known.argument}" for kind, known in KINDS.items()]
        raise DataError(f"unknown image set {parsed.source!r}{hint} Known: {', '.join([*set_names(), *kinds])}")
    try:
        found = load(Request(name, parsed.source, root, split, parsed.form))
    except (MemoryError, ValueError) as error:
        # A path with a null character, a picture that does not fit into memory.
        raise DataError(f"image set {name!r} cannot be read: {error or type(error).__name__}") from error
    found = found if parsed.classes is None else _selected(found, parsed.classes)
    return found if parsed.images is None else _spread(found, parsed.images)


def _loader(source: str) -> Callable[[Request], ImageSource] | None:
    kind, colon, path = source.partition(":")
    if colon:
        return KINDS[kind].load if path and kind in KINDS else None
    return NAMED_SETS[source].load if source in NAMED_SETS else None


def _selected(source: ImageSource, classes: str) -> ImageSource:
    """The images of the selected classes, with labels counted anew; raises DataError where there are none."""
    if source.labels is None:
        raise DataError(f"image set {source.name!r} has no classes to choose from; leave ?classes= out")
    chosen = torch.tensor(selected_classes(classes, source.classes, source.name))
    kept = source.subset(torch.isin(source.labels, chosen).nonzero().flatten())
    if not len(kept) or kept.labels is None:
        raise DataError(f"image set {source.name!r} has no images of these classes")
    return kept.relabelled(torch.searchsorted(chosen, kept.labels), tuple(source.classes[i] for i in chosen.tolist()))


def _spread(source: ImageSource, count: int) -> ImageSource:
    """So many images of a set, spread evenly over its order; raises DataError where it has not so many."""
    if not 0 < count <= len(source):
        raise DataError(f"image set {source.name!r}: images is a number from 1 to {len(source)}, found {count}")
    return source.subset(torch.arange(count) * len(source) // count)


def has_official_test(name: str) -> bool:
    """Whether a set comes with test images of its own."""
    known = NAMED_SETS.get(SetName.parse(name).source)
    return known is not None and known.official_test


def fetch(name: str, *, root: Path) -> None:
    """Download a set to `root`; raises DataError for sets that are bundled or the user's own."""
    known = NAMED_SETS.get(name)
    if known is None or known.fetch is None:
        can = [one for one, entry in NAMED_SETS.items() if entry.fetch is not None]
        raise DataError(f"{name!r} cannot be fetched; these can: {', '.join(can)}")
    known.fetch(name, root)
