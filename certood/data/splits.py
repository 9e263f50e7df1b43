"""In-distribution images in three parts, and the record of which image is in which."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certood.data.catalogue import has_official_test, load_set
from certood.data.hashing import image_digests
from certood.data.names import SetName
from certood.data.source import ImageSource, require_same_classes
from certood.errors import DataError

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Which images of a set were held out, as plain values that a checkpoint's metadata can carry.

    `id`, `id_test`, `validation`, `seed` and `size` are the arguments of `load_id`. `count` and `sha256` are the number of
    images and the fingerprint of the set that was split. `validation_images` and `test_images` are bit masks over that set:
    base64 of one bit per image, most significant bit first. `test_images` is empty where the test images are a set (or
    an official split) of their own, whose fingerprint is `test_sha256`.
    """

    id: str
    id_test: str | None
    validation: float
    seed: int
    size: int | None
    count: int
    sha256: str
    test_sha256: str
    validation_images: str
    test_images: str = ""

    def __post_init__(self) -> None:
        texts = (self.id, self.sha256, self.test_sha256, self.validation_images, self.test_images)
        optional = (self.id_test is None or isinstance(self.id_test, str)) and (self.size is None or _whole(self.size))
        number = isinstance(self.validation, int | float) and not isinstance(self.validation, bool)
        if (
            not all(isinstance(text, str) for text in texts)
            or not optional
            or not (_whole(self.seed) and _whole(self.count) and number)
        ):
            raise DataError(f"expected the record of a split as certood writes it, found {self!r}")
        if (self.held_out("validation") & self.held_out("test")).any():
            raise DataError(f"damaged record of the split of {self.id}: images are both validation and test images")

    def to_plain(self) -> dict[str, Any]:
        """The record as a dictionary of text, numbers and None, e.g. for JSON."""
        return dict(vars(self))

    @classmethod
    def from_plain(cls, record: Mapping[str, Any]) -> "Split":
        """The split of which `to_plain` gave this record; raises DataError where it is damaged."""
        try:
            return cls(**record)
        except TypeError as error:
            raise DataError(f"damaged record of a split: {error}") from error

    def held_out(self, part: str) -> Tensor:
        """Whether each image of the set that was split is in the part "validation" or "test": bool (count,)."""
        text = self.validation_images if part == "validation" else self.test_images
        if not text:
            return torch.zeros(self.count, dtype=torch.bool)
        try:
            packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"damaged record of the split of {self.id}: {error}") from error
        if len(packed) != -(-self.count // 8):
            raise DataError(
                f"damaged record of the split of {self.id}: {len(packed)} bytes of bits for {self.count} images"
            )
        return torch.from_numpy(np.unpackbits(packed, count=self.count).astype(bool))

    def trained(self) -> Tensor:
        """Whether each image of the set that was split is a training image: bool (count,)."""
        return ~(self.held_out("validation") | self.held_out("test"))


@dataclass(frozen=True)
class IdSplits:
    """The in-distribution images in three parts that share none: training, validation (for γ), and test.

    `split` is the record of which image is where; sets that were put together by hand have none. `own_test` says that the test
    images are a set that was named, and neither a part of the others' set nor its official test split.
    """

    train: ImageSource
    validation: ImageSource
    test: ImageSource
    split: Split | None = None
    own_test: bool = False

    @property
    def roles(self) -> dict[str, list[ImageSource]]:
        """The parts by use, for `require_disjoint`: test images that are a set of their own are compared with the others."""
        training = [self.train, self.validation]
        if self.own_test:
            return {"ID training images": training, "ID test images": [self.test]}
        return {"ID images": [*training, self.test]}


def load_id(
    name: str,
    *,
    root: Path,
    test: str | None = None,
    validation: float | int = 0.1,
    seed: int = 0,
    size: int | None = None,
    recorded: Split | None = None,
) -> IdSplits:
    """In-distribution images: training, validation and test.

    The test part is the set `test` where given, the official test split where there is one, and otherwise a fifth of
    the set. `validation` is a share (< 1) or a number of training images. Splits keep the classes' shares and depend on the
    seed alone. Where the images are those of a `recorded` split, that split is taken, and `validation` and `seed` are
    not read: whoever measures a detector passes the split that its checkpoint carries, so that no training image is
    tested on. Raises DataError where the set has no labels, a part would be empty, the test images have other classes,
    or a set of the recorded name has other images than recorded.
    """
    whole = load_set(name, root=root, split="train", size=size)
    test = test or (recorded.id_test if recorded is not None and recorded.id == name else None)
    official = has_official_test(name)
    if official and test is None and SetName.parse(name).images is not None:
        raise DataError(
            f"image set {name!r}: images= would cut its official test images as well; name these, whole or cut, as a "
            f"set of their own (data.id_test, --id-test), such as {SetName.parse(name).source}"
        )
    rest = load_set(test or name, root=root, split="test", size=size) if test or official else None
    if rest is not None:
        if whole.labels is not None and rest.labels is None:
            raise DataError(f"the test images {rest.name} have no labels; in-distribution images need them")
        require_same_classes(whole.classes, rest, f"the classes of {name}")
    if recorded is not None and recorded.sha256 != whole.fingerprint:
        if recorded.id == name and recorded.size == size:
            raise DataError(
                f"{name} is not the set that the detector was trained on: its images or labels have changed "
                f"(SHA-256 {whole.fingerprint[:12]}…, recorded {recorded.sha256[:12]}…); restore them, or train again"
            )
        recorded = None
    if recorded is None:
        recorded = _new_split(whole, rest, name=name, test=test, validation=validation, seed=seed, size=size)
    held_for_test = recorded.held_out("test")
    if rest is None and held_for_test.any():
        rest = whole.subset(held_for_test.nonzero().flatten())
    if rest is None:
        raise DataError(
            f"the split of {name} was recorded with test images of another set ({recorded.id_test}); name it (--id-test)"
        )
    return IdSplits(
        whole.subset(recorded.trained().nonzero().flatten()),
        whole.subset(recorded.held_out("validation").nonzero().flatten()),
        rest,
        recorded,
        own_test=test is not None and not (official and SetName.parse(test).source == SetName.parse(name).source),
    )


def _new_split(
    whole: ImageSource,
    rest: ImageSource | None,
    *,
    name: str,
    test: str | None,
    validation: float,
    seed: int,
    size: int | None,
) -> Split:
    first = first_places(whole)
    members = torch.arange(len(whole))
    tested = members[:0]
    if rest is None:
        members, tested = stratified_split(whole, TEST_SHARE, seed, first)
        rest = whole.subset(tested)
        # The same pictures are all in one part: the first of each is among the members as well.
        first = torch.searchsorted(members, first[members])
    held = members[stratified_split(whole.subset(members), validation, seed + 1, first)[1]]
    return Split(
        id=name,
        id_test=test,
        validation=validation,
        seed=seed,
        size=size,
        count=len(whole),
        sha256=whole.fingerprint,
        test_sha256=rest.fingerprint,
        validation_images=_packed(held, len(whole)),
        test_images=_packed(tested, len(whole)) if len(tested) else "",
    )


def stratified_split(
    source: ImageSource, held_out: float | int, seed: int, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out) of a labelled set, of every class the same share, rounded; both sorted.

    `held_out` is a share below 1 or a number of images. A picture that occurs several times is in one part only, that of the
    first; `first` are `first_places` of the set, if they are known, for which it is read whole otherwise. Raises DataError where
    labels are absent, a part is empty, or a class is held out whole.
    """
    labels = source.labels
    if labels is None:
        raise DataError(f"{source.name} has no labels; in-distribution images need them (class folders, or `labels`)")
    share = held_out if held_out < 1 else held_out / len(source)
    if not 0 < share < 1:
        raise DataError(f"{source.name}: cannot hold out {held_out} of {len(source)} images; hold out fewer")
    generator = torch.Generator().manual_seed(seed)
    held: list[Tensor] = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        order = members[torch.randperm(len(members), generator=generator)]
        held.append(order[: round(share * len(members))])
    kept = torch.ones(len(source), dtype=torch.bool)
    kept[torch.cat(held)] = False
    kept = kept[first_places(source) if first is None else first]
    if kept.all() or not kept.any():
        smallest = int(labels.unique(return_counts=True)[1].min())
        raise DataError(
            f"{source.name}: holding out {held_out} of {len(source)} images, a share of {share:.3g} of every class, leaves a "
            f"part empty: the smallest class has {smallest} images; hold out another number"
        )
    lost = sorted(set(labels.tolist()) - set(labels[kept].tolist()))
    if lost:
        named = source.classes[lost[0]] if source.classes else lost[0]
        raise DataError(
            f"{source.name}: holding out {held_out} of {len(source)} images leaves none of class {named!r} to train on "
            f"({len(lost)} such classes); hold out fewer, or leave small classes out (?classes=...)"
        )
    return kept.nonzero().flatten(), (~kept).nonzero().flatten()


def first_places(source: ImageSource) -> Tensor:
    """For every image the index of the first one with the same pixels."""
    first: dict[bytes, int] = {}
    return torch.tensor([first.setdefault(digest, place) for place, digest in enumerate(image_digests(source))])


def seen_in_training(start: Split, now: IdSplits, *, root: Path) -> int | None:
    """How many of the validation and test images of `now` a detector with the split `start` was trained on.

    Images are compared by their place where both split the same set (same fingerprint, or same name and number of images),
    and otherwise by the hash of their pixels, for which the set of `start` is loaded from `root`. None where that
    cannot be known: the set is not there any more, or has changed.
    """
    split = now.split
    if split is not None and (split.sha256 == start.sha256 or (split.id, split.count) == (start.id, start.count)):
        held = split.held_out("validation") | split.held_out("test")
        seen = int((start.trained() & held).sum())
        if split.test_images or split.test_sha256 == start.test_sha256:
            return seen
    try:
        whole = load_set(start.id, root=root, split="train", size=start.size)
    except DataError:
        return None
    if whole.fingerprint != start.sha256:
        return None
    trained = set(image_digests(whole.subset(start.trained().nonzero().flatten())))
    return len(trained & set(image_digests(now.validation))) + len(trained & set(image_digests(now.test)))


def _packed(indices: Tensor, count: int) -> str:
    mask = np.zeros(count, np.uint8)
    mask[indices.numpy()] = 1
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
