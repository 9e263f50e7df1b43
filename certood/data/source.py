"""What an image set is to the rest of the package: something that gives batches of uint8 images by index."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from certood.errors import DataError


class ImageSource(Protocol):
    """A set of images, held in memory or streamed from files.

    `shape` is (C, H, W) in pixels; `classes` is empty and `labels` is None for a set without labels.
    """

    @property
    def name(self) -> str:
        """The name under which results are reported."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) in pixels."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), or None."""
        ...

    @property
    def fingerprint(self) -> str:
        """A SHA-256 in hexadecimal that changes when the images or labels change."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether `batch` only picks images out of memory; otherwise it reads and decodes files."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def batch(self, indices: Tensor) -> Tensor:
        """The uint8 images (n, C, H, W) at these int64 indices (n,)."""
        ...

    def subset(self, indices: Tensor) -> Self:
        """The same set restricted to these int64 indices, in their order."""
        ...

    def relabelled(self, labels: Tensor | None, classes: tuple[str, ...]) -> Self:
        """The same images with these labels (N,) and class names."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same set with the images that are in memory on this device; labels stay where they are."""
        ...


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images (…, C, H, W) as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


@dataclass(frozen=True)
class ImageSet:
    """Images held in memory: uint8 (N, C, H, W), with int64 labels (N,) or None.

    Raises DataError where the tensors do not have these types and shapes, or a label has no class name.
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    in_memory = True

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise DataError(f"{self.name}: expected uint8 images of shape (N, C, H, W), found {found}")
        if self.labels is None:
            return
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise DataError(f"{self.name}: expected int64 labels of shape ({len(self.images)},), found {found}")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            found = f"{int(self.labels.min())}..{int(self.labels.max())}"
            raise DataError(f"{self.name}: expected labels in 0..{len(self.classes) - 1}, found {found}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) in pixels."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, class names, images and labels."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device) -> Self:
        """The same set with its images on this device; labels stay where they are."""
        return replace(self, images=self.images.to(device))

    def batch(self, indices: Tensor) -> Tensor:
        """The uint8 images (n, C, H, W) at these int64 indices (n,)."""
        return self.images[indices.to(self.images.device)]

    def subset(self, indices: Tensor) -> Self:
        """The same set restricted to these int64 indices, in their order."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=self.images[indices.to(self.images.device)], labels=labels)

    def relabelled(self, labels: Tensor | None, classes: tuple[str, ...]) -> Self:
        """The same images with these labels (N,) and class names."""
        return replace(self, labels=labels, classes=classes)


def require_same_shape(sources: Sequence[ImageSource]) -> tuple[int, int, int]:
    """The common (C, H, W) of these sets; raises DataError that names two that differ."""
    first = sources[0]
    for other in sources[1:]:
        if other.shape != first.shape:
            raise DataError(
                f"all image sets must have one shape: {first.name} is {first.shape}, {other.name} is {other.shape} "
                f"(C, H, W); {_remedy(first, other)} or leave it out"
            )
    return first.shape


def _remedy(first: ImageSource, other: ImageSource) -> str:
    """The options that give the second set the shape of the first."""
    options = []
    if first.shape[0] != other.shape[0]:
        options.append(f"colour={'grey' if first.shape[0] == 1 else 'rgb'}")
    if first.shape[1:] != other.shape[1:]:
        options.append(f"size={first.shape[1]}")
    mark = "&" if "?" in other.name else "?"
    return f"name it {other.name}{mark}{'&'.join(options)}"


def require_same_classes(expected: Sequence[str], source: ImageSource, whose: str) -> None:
    """Raise DataError where a set's classes are not these names in this order; `whose` says where they come from.

    Expected names that are no more than their own indices (0, 1, 2 …) fix only the number of classes.
    """
    found = source.classes
    numbered = all(name == str(index) for index, name in enumerate(expected))
    if tuple(expected) == tuple(found) or (numbered and len(expected) == len(found)):
        return
    where = f"{source.name} must have {whose} in the same order"
    absent = [name for name in expected if name not in found]
    more = [name for name in found if name not in expected]
    if absent or more:
        differences = [
            f"{label} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
            for label, names in (("missing", absent), ("unexpected", more))
            if names
        ]
        raise DataError(f"{where}: {len(expected)} expected, {len(found)} found; {'; '.join(differences)}")
    index = next(index for index, name in enumerate(expected) if found[index] != name)
    raise DataError(
        f"{where}: class {index} is {found[index]!r}, expected {expected[index]!r}; store labels in the order expected"
    )
