"""The contract of every source of images: one set of tests, run over the registry of sources."""

import hashlib
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from certood.data import ImageSource, joined, load_set
from certood.data.catalogue import KINDS, NAMED_SETS
from certood.data.digits import DIGITS_SETS
from certood.data.torchvision_sets import TORCHVISION_SETS
from certood.errors import DataError

COUNT, SIDE = 12, 8


def pixels(seed: int = 0, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Known:
    """A source as it lies on disk: how to make it, its name, and how to change one pixel of it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch

    def npz(self, changed: bool) -> str:
        images = pixels(0, COUNT, SIDE, SIDE, 3)
        images[3, 2, 1, 0] ^= changed
        np.savez(self.root / "x.npz", images=images, labels=np.arange(COUNT) % 3, classes=np.array(["a", "b", "c"]))
        return "npz:x.npz"

    def folder(self, changed: bool) -> str:
        for index in range(COUNT):
            path = self.root / "set" / "abc"[index % 3] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = pixels(index, SIDE, SIDE)
            image[2, 1] ^= changed and index == 3
            Image.fromarray(image).save(path)
        return "folder:set"

    def imglist(self, changed: bool) -> str:
        self.folder(changed)
        lines = [f"set/{'abc'[index % 3]}/{index}.png {index % 3}" for index in range(COUNT)]
        (self.root / "list.txt").write_text("\n".join(lines))
        return "imglist:list.txt"

    def pytorch_ood(self, changed: bool) -> str:
        """A set with the interface of theirs, whose files are the pictures of `folder`."""
        img = pytest.importorskip("pytorch_ood.dataset.img")
        self.folder(changed)
        files = [self.root / "set" / "abc"[index % 3] / f"{index}.png" for index in range(COUNT)]

        class Pictures:
            def __init__(self, root: str, transform: object = None, download: bool = False) -> None:
                assert Path(root).is_dir()
                assert not download

            def __len__(self) -> int:
                return len(files)

            def __getitem__(self, index: int) -> tuple[Image.Image, int]:
                return Image.open(files[index]), -1

        self.monkeypatch.setattr(img, "Textures", Pictures)
        return f"pytorch-ood:Textures?size={SIDE}"

    def digits(self, name: str, changed: bool) -> str:
        if changed:
            images, labels, classes = DIGITS_SETS[name]()
            images = images.clone()
            images[3, 0, 2, 1] ^= 1
            self.monkeypatch.setitem(DIGITS_SETS, name, lambda: (images, labels, classes))
        return name

    def torchvision(self, name: str, changed: bool) -> str:
        """torchvision's datasets with made-up content: arrays, file lists or pictures, as the real ones hold them."""
        known = TORCHVISION_SETS[name]
        labels = torch.arange(COUNT) % 3
        classes = ["a", "b", "c"]
        images = pixels(0, COUNT, 40, 40, 3)
        images[3, 20, 20, 0] ^= changed * 255
        raw: Any = types.SimpleNamespace(classes=classes)
        if known.shape is not None:
            channels, height, width = known.shape
            data = pixels(0, COUNT, height, width, channels)
            data[3, 2, 1, 0] ^= changed
            raw = types.SimpleNamespace(
                data=torch.from_numpy(data[..., 0]) if channels == 1 else data,
                targets=labels + (name == "emnist-letters"),
            )
            if name == "svhn":
                raw = types.SimpleNamespace(data=data.transpose(0, 3, 1, 2), labels=labels.numpy())
            elif name != "emnist-letters":
                raw.classes = classes
        elif name == "lsun":
            raw = Pictures(images, [4, 8, 12], classes)
        else:
            files = [self.root / f"{name}-{index}.png" for index in range(COUNT)]
            for path, image in zip(files, images, strict=True):
                Image.fromarray(image).save(path)
            raw._image_files, raw._labels = files, labels.tolist()
            raw.imgs, raw.targets = [(str(path), 0) for path in files], labels.tolist()
        replaced = types.SimpleNamespace(**vars(known) | {"make": lambda root, split, download: raw})
        self.monkeypatch.setitem(TORCHVISION_SETS, name, replaced)  # type: ignore[arg-type]
        return name if known.shape is not None else f"{name}?size={SIDE}"


class Pictures:
    """LSUN as torchvision holds it: pictures by index, and the ends of the classes."""

    def __init__(self, images: np.ndarray, indices: list[int], classes: list[str]) -> None:
        self.images, self.indices, self.classes = images, indices, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), 0


MAKERS: dict[str, Callable[[Known, bool], str]] = {
    "npz": Known.npz,
    "folder": Known.folder,
    "imglist": Known.imglist,
    "pytorch-ood": Known.pytorch_ood,
    **{name: lambda known, changed, name=name: known.digits(name, changed) for name in DIGITS_SETS},  # type: ignore[misc]
    **{name: lambda known, changed, name=name: known.torchvision(name, changed) for name in TORCHVISION_SETS},  # type: ignore[misc]
}


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    return Known(tmp_path, monkeypatch)


def opened(known: Known, kind: str, changed: bool = False, options: str = "") -> ImageSource:
    name = MAKERS[kind](known, changed)
    mark = "&" if "?" in name else "?"
    return load_set(name + (mark + options if options else ""), root=known.root)


def test_the_split_that_is_wanted_is_read_of_pytorch_oods_sets(known: Known) -> None:
    img = pytest.importorskip("pytorch_ood.dataset.img")
    MAKERS["pytorch-ood"](known, False)
    asked: list[object] = []

    class BySubset(img.Textures):  # type: ignore[name-defined, misc]
        def __init__(self, root: str, subset: str = "train", download: bool = False) -> None:
            if subset not in ("train", "val", "test"):
                raise ValueError(f"Invalid subset: {subset}")
            asked.append(subset)
            super().__init__(root, download=download)

    class ByFlag(img.Textures):  # type: ignore[name-defined, misc]
        def __init__(self, root: str, train: bool = True) -> None:
            asked.append(train)
            super().__init__(root)

    class TestOnly(img.Textures):  # type: ignore[name-defined, misc]
        def __init__(self, root: str, split: str = "test") -> None:
            assert split == "test"
            super().__init__(root)

    for kind in (BySubset, ByFlag, TestOnly):
        known.monkeypatch.setattr(img, kind.__name__, kind, raising=False)
    for split in ("train", "test"):
        for kind in (BySubset, ByFlag):
            load_set(f"pytorch-ood:{kind.__name__}?size=8", root=known.root, split=split)
    assert asked == ["train", True, "test", False]
    load_set("pytorch-ood:TestOnly?size=8", root=known.root, split="test")
    with pytest.raises(DataError, match="TestOnly has no split 'train'"):
        load_set("pytorch-ood:TestOnly?size=8", root=known.root, split="train")

    class Damaged(img.Textures):  # type: ignore[name-defined, misc]
        def __init__(self, root: str, split: str = "test") -> None:
            raise ValueError("bad archive")

    known.monkeypatch.setattr(img, "Damaged", Damaged, raising=False)
    with pytest.raises(DataError, match="was not found, or is damaged"):
        load_set("pytorch-ood:Damaged?size=8", root=known.root, split="train")


def test_every_source_of_the_registry_is_tested() -> None:
    assert MAKERS.keys() == KINDS.keys() | NAMED_SETS.keys()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_source_keeps_its_contract(known: Known, kind: str) -> None:
    source = opened(known, kind)
    everything = source.batch(torch.arange(len(source)))
    assert everything.dtype == torch.uint8
    assert everything.shape == (len(source), *source.shape)
    assert len(everything.unique()) > 2
    labels = source.labels
    assert (labels is None) == (not source.classes)
    if labels is not None:
        assert labels.dtype == torch.int64
        assert labels.shape == (len(source),)
        assert 0 <= int(labels.min()) <= int(labels.max()) < len(source.classes)
        assert len(set(source.classes)) == len(source.classes)
    # One by one, in any order and with repetitions, images are those of the whole.
    for index in (0, 3, len(source) - 1):
        assert torch.equal(source.batch(torch.tensor([index]))[0], everything[index])
    order = torch.tensor([5, 0, 5, len(source) - 1])
    assert torch.equal(source.batch(order), everything[order])
    assert source.batch(order[:0]).shape[0] == 0
    # A subset of a subset.
    some = source.subset(torch.tensor([7, 2, 4]))
    assert (len(some), some.shape, some.classes) == (3, source.shape, source.classes)
    assert torch.equal(some.batch(torch.arange(3)), everything[torch.tensor([7, 2, 4])])
    assert torch.equal(some.subset(torch.tensor([2])).batch(torch.tensor([0]))[0], everything[4])
    if labels is not None and some.labels is not None:
        assert some.labels.tolist() == labels[torch.tensor([7, 2, 4])].tolist()
    moved = source.to(torch.device("cpu"))
    assert torch.equal(moved.batch(order), everything[order])
    assert torch.equal(joined([source], [1.0]).batch(order), everything[order])


@pytest.mark.parametrize("kind", MAKERS)
def test_a_fingerprint_is_that_of_the_pixels_labels_and_classes(known: Known, kind: str) -> None:
    source = opened(known, kind)
    again = opened(known, kind)
    assert again.fingerprint == source.fingerprint
    assert torch.equal(again.batch(torch.arange(len(again))), source.batch(torch.arange(len(source))))
    assert len(source.fingerprint) == 64
    others = [source.subset(torch.tensor(indices)).fingerprint for indices in ([0, 1], [1, 0], [0, 1, 2])]
    assert len({source.fingerprint, *others}) == 4
    if source.labels is not None:
        turned = source.relabelled(source.labels.flip(0), source.classes)
        renamed = source.relabelled(source.labels, tuple(f"{name}!" for name in source.classes))
        assert len({source.fingerprint, turned.fingerprint, renamed.fingerprint}) == 3
    changed = opened(known, kind, changed=True)
    assert changed.fingerprint != source.fingerprint
    difference = changed.batch(torch.arange(len(changed))) != source.batch(torch.arange(len(source)))
    if source.in_memory:
        assert difference.flatten(1).any(1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("kind", MAKERS)
def test_options_apply_to_every_source(known: Known, kind: str) -> None:
    source = opened(known, kind)
    for colour, channels in (("grey", 1), ("rgb", 3)):
        assert opened(known, kind, options=f"colour={colour}").shape[0] == channels
    if source.classes:
        one = opened(known, kind, options=f"classes={source.classes[0]}")
        assert source.labels is not None
        assert torch.equal(one.batch(torch.arange(len(one))), source.batch((source.labels == 0).nonzero().flatten()))
        assert one.classes == source.classes[:1]


@pytest.mark.parametrize("kind", [name for name, known in TORCHVISION_SETS.items() if known.shape is None])
def test_pictures_of_many_sizes_need_a_size(known: Known, kind: str) -> None:
    MAKERS[kind](known, False)
    with pytest.raises(DataError, match="give a size"):
        load_set(kind, root=known.root)


def test_fingerprints_see_a_change_that_keeps_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "0.bmp"
    image = pixels(0, SIDE, SIDE)
    Image.fromarray(image).save(path)
    os.utime(path, ns=(10**18, 10**18))
    before = load_set(f"folder:{tmp_path}", root=Path()).fingerprint
    image[0, 0] ^= 1
    Image.fromarray(image).save(path)
    os.utime(path, ns=(10**18, 10**18))
    assert load_set(f"folder:{tmp_path}", root=Path()).fingerprint != before


def test_a_file_is_read_once_when_it_is_old_and_always_when_it_is_young(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing = sys.modules["certood.data.hashing"]
    reads = []
    real = hashing.hashlib.file_digest
    monkeypatch.setattr(hashing.hashlib, "file_digest", lambda file, kind: reads.append(1) or real(file, kind))
    path = tmp_path / "x"
    path.write_bytes(b"content")
    digests = {hashing.file_digest(path) for _ in range(3)}
    assert len(reads) == 3
    now = hashing.time.time_ns()
    monkeypatch.setattr(hashing.time, "time_ns", lambda: now + 3 * 10**9)
    digests |= {hashing.file_digest(path) for _ in range(3)}
    assert len(reads) == 4
    assert digests == {hashlib.sha256(b"content").digest()}
    # Of the same path, size and time of modification, the time of change tells.
    modified = path.stat().st_mtime_ns
    path.write_bytes(b"another")
    os.utime(path, ns=(modified, modified))
    assert hashing.file_digest(path) == hashlib.sha256(b"another").digest()


def test_letters_are_upright_and_named_from_a(known: Known) -> None:
    """torchvision's EMNIST stores rows as columns, and labels from 1."""
    source = opened(known, "emnist-letters")
    stored = torch.from_numpy(pixels(0, COUNT, 28, 28, 1)[..., 0])
    for row, column in ((0, 5), (3, 20), (27, 1)):
        assert torch.equal(source.batch(torch.arange(COUNT))[:, 0, row, column], stored[:, column, row])
    assert source.labels is not None
    assert [source.classes[label] for label in source.labels.tolist()[:3]] == ["a", "b", "c"]
