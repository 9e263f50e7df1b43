"""Image sets of picture files: `folder:PATH`, in class folders or flat."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from certood.data.form import Form
from certood.data.hashing import file_digests, tensor_bytes
from certood.data.pictures import READERS, batched, decoded, header_shape, read_picture
from certood.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TRAINING_FOLDERS = frozenset({"train", "training"})
HELD_OUT_FOLDERS = frozenset({"test", "testing", "val", "valid", "validation", "dev"})


@dataclass(frozen=True)
class FolderSet:
    """Picture files read when they are asked for, by a pool of threads; see `pixels` for what a picture becomes.

    `shape` is the (C, H, W) of every image after `form`. The set is grey where all of its pictures are, and colour otherwise:
    a grey picture among them gets three equal channels.
    """

    name: str
    root: Path
    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    form: Form = field(default_factory=Form)
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    in_memory = False

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the bytes and relative names of the files, labels, class names, shape and form."""
        digest = hashlib.sha256(repr((self.shape, self.form, self.classes)).encode())
        for path, content in zip(self.files, file_digests(self.files), strict=True):
            digest.update(repr(path.relative_to(self.root).as_posix()).encode() + content)
        if self.labels is not None:
            digest.update(tensor_bytes(self.labels))
        return digest.hexdigest()

    def batch(self, indices: Tensor) -> Tensor:
        """The uint8 images (n, C, H, W) at these int64 indices (n,); raises DataError for a picture that is damaged."""
        return batched(self._read, indices, self.shape)

    def subset(self, indices: Tensor) -> Self:
        """The same set restricted to these int64 indices, in their order."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, files=tuple(self.files[i] for i in indices.tolist()), labels=labels)

    def relabelled(self, labels: Tensor | None, classes: tuple[str, ...]) -> Self:
        """The same images with these labels (N,) and class names."""
        return replace(self, labels=labels, classes=classes)

    def to(self, device: torch.device) -> Self:
        """The set itself: pictures stay in their files until they are asked for."""
        return self

    def _read(self, index: int) -> Tensor:
        path = self.files[index]
        found = read_picture(str(path), path, lambda picture: decoded(picture, self.form, self.shape[0]))
        if found.shape != self.shape:
            raise DataError(
                f"{self.name}: {path} now gives {tuple(found.shape)} (C, H, W), and gave {self.shape} when the set was opened"
            )
        return found


def load_folder(name: str, root: Path, form: Form) -> FolderSet:
    """A folder of pictures: one folder a class, or flat. Files and folders that start with a dot are left out.

    Raises DataError where it is missing or empty, a class folder is empty, pictures lie beside class folders, folders are
    training and test splits and not classes, or pictures differ in size and the form gives none.
    """
    if not root.is_dir():
        raise DataError(
            f"image set {name!r}: no folder {root.absolute()}; give folder:PATH, absolute or below --data-root"
        )
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    _require_classes(name, folders)
    beside = [path for path in root.iterdir() if _is_picture(path)]
    if folders and beside:
        raise DataError(
            f"{name}: {root.absolute()} holds class folders and {len(beside)} pictures beside them ({beside[0].name}); "
            "move these into a class folder or away"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = _pictures(folder)
        if not found:
            raise DataError(f"{name}: the class folder {folder} holds no pictures; fill it or remove it")
        files += found
        labels += [label] * len(found)
    files = files if folders else sorted(beside)
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{name}: {root.absolute()} holds no pictures ({suffixes}), neither flat nor in class folders")
    classes = tuple(folder.name for folder in folders)
    return picture_files(name, root, files, form, torch.tensor(labels) if folders else None, classes)


def picture_files(
    name: str, root: Path, files: Sequence[Path], form: Form, labels: Tensor | None, classes: tuple[str, ...]
) -> FolderSet:
    """A set of these files below `root`; the headers of all are read to find their common shape.

    Raises DataError where a header cannot be used, or sizes differ or are not square and the form gives none.
    """
    with ThreadPoolExecutor(READERS) as readers:
        shapes = list(readers.map(lambda path: read_picture(str(path), path, header_shape), files))
    channels = max(shape[0] for shape in shapes)
    sizes = {shape[1:]: path for path, shape in zip(reversed(files), reversed(shapes), strict=True)}
    if form.side is None and len(sizes) > 1:
        (one, first), (two, second) = list(sizes.items())[:2]
        raise DataError(
            f"{name}: pictures differ in size ({first} is {one[1]}×{one[0]}, {second} is {two[1]}×{two[0]}); "
            "give a size (data.size, or ?size=)"
        )
    height, width = next(iter(sizes))
    if form.side is None and height != width:
        raise DataError(
            f"{name}: pictures are {width}×{height}, not square; give a size (data.size, or ?size=) to crop and resize"
        )
    return FolderSet(name, root, tuple(files), form.shape((channels, height, width)), form, labels, classes)


def _require_classes(name: str, folders: Sequence[Path]) -> None:
    """Raise DataError where folders are named like the splits of a set: they are not its classes."""
    lower = {path.name.lower(): path.name for path in folders}
    training, held_out = lower.keys() & TRAINING_FOLDERS, lower.keys() & HELD_OUT_FOLDERS
    if (training and held_out) or (folders and lower.keys() <= TRAINING_FOLDERS | HELD_OUT_FOLDERS):
        first = lower[min(training or held_out)]
        path = name.partition("?")[0]
        raise DataError(
            f"{name}: the folders {', '.join(sorted(lower.values())[:5])} look like the splits of a set, not like classes; "
            f"name one of them: {path}/{first}"
            + (f" (and as test images, data.id_test: {path}/{lower[min(held_out)]})" if training and held_out else "")
        )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_picture(path) and not _is_hidden(path.relative_to(folder)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
