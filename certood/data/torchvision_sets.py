"""The sets that torchvision knows: found on disk, or fetched when asked."""

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from certood.data.folder import picture_files
from certood.data.form import Form
from certood.data.hashing import image_digests, tensor_bytes
from certood.data.pictures import batched, decoded, read_picture
from certood.data.request import Request
from certood.data.source import ImageSet, ImageSource
from certood.errors import DataError


@dataclass(frozen=True)
class TorchvisionSet:
    """How one of torchvision's sets is found (root, split, download), and read; `shape` is None where pictures differ."""

    title: str
    shape: tuple[int, int, int] | None
    sizes: str
    make: Callable[[Path, str, bool], Any]
    read: Callable[[Request, Any], ImageSource]


def _simple(kind: str) -> Callable[[Path, str, bool], Any]:
    def make(root: Path, split: str, download: bool) -> Any:
        import torchvision  # noqa: PLC0415 (slow to import)

        return getattr(torchvision.datasets, kind)(root=str(root), train=split == "train", download=download)

    return make


def _by_split(kind: str, **fixed: Any) -> Callable[[Path, str, bool], Any]:
    def make(root: Path, split: str, download: bool) -> Any:
        import torchvision  # noqa: PLC0415

        return getattr(torchvision.datasets, kind)(root=str(root), split=split, download=download, **fixed)

    return make


def _letters(root: Path, split: str, download: bool) -> Any:
    import torchvision  # noqa: PLC0415

    return torchvision.datasets.EMNIST(root=str(root), split="letters", train=split == "train", download=download)


def _places(root: Path, split: str, download: bool) -> Any:
    import torchvision  # noqa: PLC0415

    name = "train-standard" if split == "train" else "val"
    return torchvision.datasets.Places365(root=str(root / "places365"), split=name, small=True, download=download)


def _lsun(root: Path, split: str, download: bool) -> Any:
    import torchvision  # noqa: PLC0415

    if download:
        raise DataError(
            "LSUN cannot be fetched here: its owners' own script writes the LMDB files that torchvision reads"
        )
    return torchvision.datasets.LSUN(root=str(root / "lsun"), classes="train" if split == "train" else "val")


def load_torchvision(request: Request) -> ImageSource:
    """One of TORCHVISION_SETS as it lies below the root; raises DataError with the remedy where it is not there."""
    name = request.source
    known = TORCHVISION_SETS[name]
    try:
        raw = known.make(request.root, request.split, False)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise DataError(
            f"{known.title} ({request.split} split) was not found, or is damaged, in {request.root.absolute()} ({error}); "
            f"get it with: certood data fetch {name} --data-root {shlex.quote(str(request.root))}"
        ) from error
    if known.shape is None and request.form.side is None:
        raise DataError(
            f"{name} has pictures of many sizes: give a size (data.size, or {name}?size=), e.g. that of the "
            "in-distribution images"
        )
    return known.read(request, raw)


def fetch_torchvision(name: str, root: Path) -> None:
    """Download both splits of one of TORCHVISION_SETS to `root`; raises DataError where that fails."""
    known = TORCHVISION_SETS[name]
    root.mkdir(parents=True, exist_ok=True)
    for split in ("test",) if name == "places365" else ("train", "test"):
        try:
            known.make(root, split, True)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            raise DataError(f"could not fetch {known.title} to {root.absolute()}: {error}") from error


def _arrays(request: Request, raw: Any) -> ImageSource:
    """A set that torchvision holds in memory: `data`, and `targets` or `labels`."""
    images = raw.data if isinstance(raw.data, Tensor) else torch.from_numpy(np.ascontiguousarray(raw.data))
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(np.asarray(getattr(raw, "targets", getattr(raw, "labels", None)))).long()
    classes = getattr(raw, "classes", None) or [str(label) for label in range(int(labels.max()) + 1)]
    return ImageSet(request.name, request.form(images.contiguous()), labels, tuple(classes))


def _letter_arrays(request: Request, raw: Any) -> ImageSource:
    """EMNIST's letters, upright; torchvision stores them transposed, with labels from 1."""
    images, labels = raw.data[:, None].transpose(2, 3).contiguous(), raw.targets.long() - 1
    return ImageSet(request.name, request.form(images), labels, tuple("abcdefghijklmnopqrstuvwxyz"))


def _textures(request: Request, raw: Any) -> ImageSource:
    return picture_files(
        request.name, request.root, raw._image_files, request.form, torch.tensor(raw._labels), tuple(raw.classes)
    )


def _scenes(request: Request, raw: Any) -> ImageSource:
    files = [Path(path) for path, _ in raw.imgs]
    return picture_files(request.name, request.root, files, request.form, torch.tensor(raw.targets), tuple(raw.classes))


def _lmdb(request: Request, raw: Any) -> ImageSource:
    sizes = torch.tensor(raw.indices).diff(prepend=torch.zeros(1, dtype=torch.int64))
    labels = torch.arange(len(raw.classes)).repeat_interleave(sizes)
    form = replace(request.form, colour=request.form.colour or "rgb")
    return PictureDataset(request.name, raw, form, torch.arange(len(raw)), labels, tuple(raw.classes))


@dataclass(frozen=True)
class PictureDataset:
    """A dataset of (picture, label) whose pictures are decoded when they are asked for; its form gives colour and size.

    The fingerprint decodes every picture, once for each set.
    """

    name: str
    raw: Any
    form: Form
    indices: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    in_memory = False

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) in pixels."""
        return self.form.shape((3, 0, 0))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the pixels of every picture, labels, class names and shape."""
        digest = hashlib.sha256(repr((self.shape, self.classes)).encode())
        for part in image_digests(self):
            digest.update(part)
        if self.labels is not None:
            digest.update(tensor_bytes(self.labels))
        return digest.hexdigest()

    def batch(self, indices: Tensor) -> Tensor:
        """The uint8 images (n, C, H, W) at these int64 indices (n,)."""
        return batched(self._read, self.indices[indices], self.shape)

    def subset(self, indices: Tensor) -> Self:
        """The same set restricted to these int64 indices, in their order."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, indices=self.indices[indices], labels=labels)

    def relabelled(self, labels: Tensor | None, classes: tuple[str, ...]) -> Self:
        """The same images with these labels (N,) and class names."""
        return replace(self, labels=labels, classes=classes)

    def to(self, device: torch.device) -> Self:
        """The set itself: pictures stay in their files until they are asked for."""
        return self

    def _read(self, index: int) -> Tensor:
        return read_picture(
            f"{index} of {self.name}",
            lambda: self.raw[index][0],
            lambda picture: decoded(picture, self.form, self.shape[0]),
        )


TORCHVISION_SETS = {
    "cifar10": TorchvisionSet("CIFAR-10", (3, 32, 32), "50,000 / 10,000", _simple("CIFAR10"), _arrays),
    "cifar100": TorchvisionSet("CIFAR-100", (3, 32, 32), "50,000 / 10,000", _simple("CIFAR100"), _arrays),
    "svhn": TorchvisionSet("Street View House Numbers", (3, 32, 32), "73,257 / 26,032", _by_split("SVHN"), _arrays),
    "dtd": TorchvisionSet("Describable Textures", None, "1,880 / 1,880", _by_split("DTD"), _textures),
    "places365": TorchvisionSet("Places365, small", None, "1.8 M / 36,500", _places, _scenes),
    "lsun": TorchvisionSet("LSUN scenes", None, "9.9 M / 3,000", _lsun, _lmdb),
    "mnist": TorchvisionSet("MNIST", (1, 28, 28), "60,000 / 10,000", _simple("MNIST"), _arrays),
    "fashion-mnist": TorchvisionSet("Fashion-MNIST", (1, 28, 28), "60,000 / 10,000", _simple("FashionMNIST"), _arrays),
    "kmnist": TorchvisionSet("Kuzushiji-MNIST", (1, 28, 28), "60,000 / 10,000", _simple("KMNIST"), _arrays),
    "emnist-letters": TorchvisionSet("EMNIST letters", (1, 28, 28), "124,800 / 20,800", _letters, _letter_arrays),
}
