"""The sets that torchvision knows: found on disk, or fetched when asked."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from certood.data.files import READERS, fitted, resized
from certood.data.source import ImageSet, ImageSource
from certood.errors import DataError


@dataclass(frozen=True)
class TorchvisionSet:
    """What is known of one of torchvision's sets before it is loaded."""

    title: str
    shape: tuple[int, int, int] | None
    classes: int
    sizes: str
    has_train: bool
    make: Callable[[Path, str, bool], Any]


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


TORCHVISION_SETS = {
    "cifar10": TorchvisionSet("CIFAR-10", (3, 32, 32), 10, "50,000 / 10,000", True, _simple("CIFAR10")),
    "cifar100": TorchvisionSet("CIFAR-100", (3, 32, 32), 100, "50,000 / 10,000", True, _simple("CIFAR100")),
    "svhn": TorchvisionSet("Street View House Numbers", (3, 32, 32), 10, "73,257 / 26,032", True, _by_split("SVHN")),
    "dtd": TorchvisionSet("Describable Textures", None, 47, "1,880 / 1,880", True, _by_split("DTD")),
    "places365": TorchvisionSet("Places365, small", None, 365, "1.8 M / 36,500", True, _places),
    "lsun": TorchvisionSet("LSUN scenes", None, 10, "9.9 M / 3,000", True, _lsun),
    "mnist": TorchvisionSet("MNIST", (1, 28, 28), 10, "60,000 / 10,000", True, _simple("MNIST")),
    "fashion-mnist": TorchvisionSet("Fashion-MNIST", (1, 28, 28), 10, "60,000 / 10,000", True, _simple("FashionMNIST")),
    "kmnist": TorchvisionSet("Kuzushiji-MNIST", (1, 28, 28), 10, "60,000 / 10,000", True, _simple("KMNIST")),
    "emnist-letters": TorchvisionSet("EMNIST letters", (1, 28, 28), 26, "124,800 / 20,800", True, _letters),
}


def load_torchvision(name: str, root: Path, split: str, size: int | None) -> ImageSource:
    """One of TORCHVISION_SETS as it lies below `root`; raises DataError with the remedy where it is not there."""
    known = TORCHVISION_SETS[name]
    try:
        raw = known.make(root, split, False)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise DataError(
            f"{known.title} ({split} split) was not found, or is damaged, in {root.absolute()} ({error}); "
            f"get it with: certood data fetch {name} --root {root}"
        ) from error
    if known.shape is None:
        return _streamed(name, raw, size)
    return _in_memory(name, raw, size)


def fetch_torchvision(name: str, root: Path) -> None:
    """Download both splits of one of TORCHVISION_SETS to `root`; raises DataError where that fails."""
    known = TORCHVISION_SETS[name]
    root.mkdir(parents=True, exist_ok=True)
    for split in ("test",) if name == "places365" else ("train", "test"):
        try:
            known.make(root, split, True)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            raise DataError(f"could not fetch {known.title} to {root.absolute()}: {error}") from error


def _in_memory(name: str, raw: Any, size: int | None) -> ImageSet:
    pixels = raw.data if isinstance(raw.data, Tensor) else torch.from_numpy(np.ascontiguousarray(raw.data))
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    targets = torch.as_tensor(np.asarray(getattr(raw, "targets", getattr(raw, "labels", None)))).long()
    if name == "emnist-letters":
        pixels, targets = pixels.transpose(2, 3), targets - 1
        return ImageSet(name, resized(pixels.contiguous(), size), targets, tuple("abcdefghijklmnopqrstuvwxyz"))
    classes = getattr(raw, "classes", None) or [str(label) for label in range(int(targets.max()) + 1)]
    return ImageSet(name, resized(pixels.contiguous(), size), targets, tuple(classes))


def _streamed(name: str, raw: Any, size: int | None) -> "PictureDataset":
    if size is None:
        raise DataError(
            f"{name} has pictures of many sizes: give a size (data.size), e.g. that of the in-distribution images"
        )
    return PictureDataset(name, raw, size, torch.arange(len(raw)))


@dataclass(frozen=True)
class PictureDataset:
    """A torchvision set whose pictures are decoded when they are asked for; colour, central square, size×size.

    It has no labels here: it serves as outliers. The fingerprint covers the number of pictures and 16 of them.
    """

    name: str
    raw: Any
    size: int
    indices: Tensor
    labels: None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) in pixels."""
        return 3, self.size, self.size

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the number of pictures, and the pixels of 16 of them."""
        digest = hashlib.sha256(repr((self.name, len(self), self.shape)).encode())
        digest.update(self.batch(torch.linspace(0, len(self) - 1, min(16, len(self))).long()).numpy().tobytes())
        return digest.hexdigest()

    def batch(self, indices: Tensor) -> Tensor:
        """The uint8 images (n, C, H, W) at these int64 indices (n,)."""
        with ThreadPoolExecutor(READERS) as readers:
            return torch.stack(list(readers.map(self._read, self.indices[indices].tolist())))

    def subset(self, indices: Tensor) -> Self:
        """The same set restricted to these int64 indices, in their order."""
        return replace(self, indices=self.indices[indices])

    def _read(self, index: int) -> Tensor:
        try:
            picture = self.raw[index][0].convert("RGB")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name}: cannot read picture {index} ({error})") from error
        return torch.from_numpy(np.array(fitted(picture, self.size, self.size))).permute(2, 0, 1)
