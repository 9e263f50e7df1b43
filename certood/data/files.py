"""Image sets of the user's own files: `npz:PATH` and `folder:PATH`."""

import hashlib
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from certood.data.source import ImageSet
from certood.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
READERS = min(8, os.cpu_count() or 1)


def resized(images: Tensor, size: int | None) -> Tensor:
    """uint8 images (N, C, H, W), cropped to their central square and resized to size×size (antialiased bilinear)."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    side = min(images.shape[-2:])
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    square = images[..., top : top + side, left : left + side]
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        for part in square.split(1000)
    ]
    return torch.cat(parts).round().clamp(0, 255).to(torch.uint8)


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture cropped to the central part of this shape and resized to width×height pixels (bilinear)."""
    if picture.size == (width, height):
        return picture
    return ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)


def load_npz(name: str, path: Path, size: int | None) -> ImageSet:
    """An npz file with `images` (uint8 NHWC or NHW) and, optionally, `labels` (integers) and `classes` (names).

    Raises DataError where the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise DataError(f"image set {name!r}: no file {path.absolute()}; give npz:PATH, absolute or below --data-root")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("images", "labels", "classes") if key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{path} is not a readable npz file ({error}); write it again with numpy.savez") from error
    if "images" not in arrays:
        raise DataError(f"{path} has no array `images` (uint8, NHWC or NHW)")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{path}: expected `images` of uint8, NHWC or NHW, found {images.dtype} {images.shape}{_range(images)}"
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        raise DataError(f"{path}: expected 1 or 3 channels last (NHWC), found shape {images.shape}")
    if not len(images):
        raise DataError(f"{path} holds no images")
    channels_first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    labels, classes = _labels(path, arrays, len(images))
    tensor = torch.from_numpy(np.ascontiguousarray(channels_first))
    return ImageSet(name, resized(tensor, size), labels, classes)


def _range(images: NDArray[Any]) -> str:
    """What to do about images that are not uint8."""
    if images.dtype.kind != "f" or not images.size:
        return ""
    if not np.isfinite(images).all():
        return " with values that are not finite; mend these, and store uint8"
    most = float(images.max())
    if most > 1.5:
        return f" up to {most:g}: these look like 0–255, store images.round().astype(np.uint8)"
    return "; multiply images in [0, 1] by 255 and round"


def _labels(path: Path, arrays: dict[str, Any], count: int) -> tuple[Tensor | None, tuple[str, ...]]:
    if "labels" not in arrays:
        return None, ()
    labels = arrays["labels"]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: expected {count} integer `labels`, found {labels.dtype} {labels.shape}")
    classes = arrays.get("classes")
    names = [str(i) for i in range(int(labels.max()) + 1)] if classes is None else [str(item) for item in classes]
    return torch.from_numpy(labels.astype(np.int64)), tuple(names)


@dataclass(frozen=True)
class FolderSet:
    """Picture files read when they are asked for, by a pool of threads.

    Class folders give labels; a flat folder has none. Every picture is cropped to its central square and resized to
    size×size; without a size, all must be square and equal. `channels` is 3 (colour) or 1 (grey).
    """

    name: str
    root: Path
    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the files, labels and shape."""
        digest = hashlib.sha256(repr((self.shape, self.classes)).encode())
        for path in self.files:
            digest.update(f"{path.relative_to(self.root).as_posix()} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def batch(self, indices: Tensor) -> Tensor:
        """The uint8 images (n, C, H, W) at these int64 indices (n,); raises DataError for a picture that is damaged."""
        with ThreadPoolExecutor(READERS) as readers:
            return torch.stack(list(readers.map(self._read, indices.tolist())))

    def subset(self, indices: Tensor) -> Self:
        """The same set restricted to these int64 indices, in their order."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, files=tuple(self.files[i] for i in indices.tolist()), labels=labels)

    def _read(self, index: int) -> Tensor:
        path = self.files[index]
        channels, height, width = self.shape
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB" if channels == 3 else "L")
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.name}: cannot read the picture {path} ({error}); repair or remove it") from error
        pixels = torch.from_numpy(np.array(fitted(picture, width, height)))
        return pixels.permute(2, 0, 1) if channels == 3 else pixels[None]


def load_folder(name: str, root: Path, size: int | None, channels: int | None = None) -> FolderSet:
    """A folder of pictures: one folder a class, or flat.

    Raises DataError where it is missing or empty, a class folder is empty, or pictures differ in size and none is given.
    """
    if not root.is_dir():
        raise DataError(
            f"image set {name!r}: no folder {root.absolute()}; give folder:PATH, absolute or below --data-root"
        )
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = tuple(folder.name for folder in folders)
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = _pictures(folder)
        if not found:
            raise DataError(f"{name}: the class folder {folder} holds no pictures; fill it or remove it")
        files += found
        labels += [label] * len(found)
    if not folders:
        files = _pictures(root)
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{name}: {root.absolute()} holds no pictures ({suffixes}), neither flat nor in class folders")
    shape = _common_shape(name, files, size, channels)
    return FolderSet(name, root, tuple(files), shape, torch.tensor(labels) if folders else None, classes)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _common_shape(name: str, files: Sequence[Path], size: int | None, channels: int | None) -> tuple[int, int, int]:
    sample = files if size is None else files[:1]
    seen: dict[tuple[int, int], Path] = {}
    grey = True
    for path in sample:
        try:
            with Image.open(path) as picture:
                seen.setdefault(picture.size, path)
                grey = grey and picture.mode in ("1", "L", "I", "I;16", "F")
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{name}: cannot read the picture {path} ({error}); repair or remove it") from error
    count = channels or (1 if grey else 3)
    if size is not None:
        return count, size, size
    if len(seen) > 1:
        (one, first), (two, second) = list(seen.items())[:2]
        raise DataError(
            f"{name}: pictures differ in size ({first} is {one}, {second} is {two}); give a size (data.size)"
        )
    width, height = next(iter(seen))
    if width != height:
        raise DataError(
            f"{name}: pictures are {width}×{height}, not square; give a size (data.size) to crop and resize"
        )
    return count, height, width
