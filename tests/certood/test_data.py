"""Image sets: what is in them, how they are split, and what is said of broken ones."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from certood.cli import main
from certood.data import FolderSet, ImageSet, load_id, load_set, random_crop, random_flip, stratified_split
from certood.data.check import shared_images
from certood.data.digits import DIGITS_SETS
from certood.data.hashing import image_digests
from certood.data.torchvision_sets import TORCHVISION_SETS
from certood.errors import DataError


def test_the_digits_are_scikit_learns_own() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    loaded = load_set("digits", root=Path())
    assert isinstance(loaded, ImageSet)
    assert loaded.labels is not None
    fours = loaded.images[loaded.labels == loaded.classes.index("4")]
    expected = np.rint(bunch.images[bunch.target == 4] * 255 / 16)
    np.testing.assert_array_equal(fours[:, 0].numpy(), expected)


def test_no_image_is_in_two_of_the_bundled_sets() -> None:
    names = list(DIGITS_SETS)
    loaded = [load_set(name, root=Path()) for name in names]
    for index, first in enumerate(loaded):
        for second in loaded[index + 1 :]:
            assert shared_images(first, second) == 0, (first.name, second.name)


def test_splits_share_no_image_and_keep_class_shares() -> None:
    splits = load_id("digits", root=Path(), validation=0.2, seed=3)
    parts = [splits.train, splits.validation, splits.test]
    digests = [set(image_digests(part)) for part in parts]
    assert sum(map(len, parts)) == len(load_set("digits", root=Path()))
    assert digests[0].isdisjoint(digests[1] | digests[2])
    assert digests[1].isdisjoint(digests[2])
    for part in parts:
        assert part.labels is not None
        counts = torch.bincount(part.labels, minlength=6).double()
        assert (counts / counts.mean() - 1).abs().max() < 0.06


def test_splits_depend_on_the_seed_alone() -> None:
    one, two, other = (load_id("digits", root=Path(), seed=seed).train.fingerprint for seed in (1, 1, 2))
    assert one == two != other


def write_npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_npz_round_trip_grey_and_colour(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    colour = generator.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    name = write_npz(tmp_path / "c.npz", images=colour, labels=np.array([0, 1, 0, 1, 2]), classes=np.array(list("abc")))
    loaded = load_set(name, root=Path())
    np.testing.assert_array_equal(loaded.batch(torch.tensor([3]))[0].numpy(), colour[3].transpose(2, 0, 1))
    assert loaded.classes == ("a", "b", "c")
    grey = load_set(write_npz(tmp_path / "g.npz", images=colour[..., 0]), root=Path())
    assert grey.shape == (1, 6, 6)
    assert grey.labels is None


def test_resizing_keeps_a_constant_image_and_crops_the_middle(tmp_path: Path) -> None:
    images = np.zeros((1, 4, 8), np.uint8)
    images[:, :, 2:6] = 200
    assert (
        load_set(write_npz(tmp_path / "w.npz", images=images), root=Path(), size=4).batch(torch.tensor([0])).unique()
        == 200
    )
    assert load_set(write_npz(tmp_path / "v.npz", images=images[:, :, :4] * 0 + 7), root=Path(), size=9).shape == (
        1,
        9,
        9,
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "no array `images`"),
        ({"images": np.zeros((2, 4, 4), np.float32)}, r"expected `images` of uint8.*multiply images in \[0, 1\]"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, "expected 1 or 3 channels last"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "holds no images"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "expected 2 integer `labels`"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "expected labels in 0"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_set(write_npz(tmp_path / "x.npz", **arrays), root=Path())


def test_a_missing_and_a_truncated_npz_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*gone.npz"):
        load_set("npz:gone.npz", root=tmp_path)
    path = tmp_path / "cut.npz"
    np.savez(path, images=np.zeros((20, 8, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable npz file"):
        load_set("npz:cut.npz", root=tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two class folders of three colour pictures of 10×10 pixels."""
    generator = np.random.default_rng(1)
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for index in range(3):
            pixels = generator.integers(0, 256, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{index}.png")
    return tmp_path / "set"


def test_class_folders_give_labels_and_the_pictures_pixels(pictures: Path) -> None:
    loaded = load_set(f"folder:{pictures}", root=Path())
    assert isinstance(loaded, FolderSet)
    assert loaded.classes == ("cat", "dog")
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.asarray(Image.open(pictures / "dog" / "1.png")).transpose(2, 0, 1)
    np.testing.assert_array_equal(loaded.batch(torch.tensor([4]))[0].numpy(), expected)
    assert loaded.subset(torch.tensor([5, 0])).labels.tolist() == [1, 0]  # type: ignore[union-attr]


def test_a_flat_folder_has_no_labels(pictures: Path) -> None:
    flat = load_set(f"folder:{pictures / 'cat'}", root=Path(), size=5)
    assert flat.labels is None
    assert flat.shape == (3, 5, 5)


def test_hidden_folders_are_left_out_at_every_depth(pictures: Path) -> None:
    (pictures / "cat" / ".thumbs").mkdir()
    (pictures / "cat" / ".thumbs" / "0.png").write_bytes((pictures / "cat" / "0.png").read_bytes())
    assert len(load_set(f"folder:{pictures}", root=Path())) == 6


def test_an_image_list_may_begin_with_a_byte_order_mark(pictures: Path) -> None:
    (pictures / "list.txt").write_text("cat/0.png 0\ndog/0.png 1\n", "utf-8-sig")
    assert load_set("imglist:list.txt", root=pictures).labels.tolist() == [0, 1]  # type: ignore[union-attr]


def test_the_fingerprint_of_a_folder_sees_a_changed_file(pictures: Path) -> None:
    before = load_set(f"folder:{pictures}", root=Path()).fingerprint
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(pictures / "cat" / "0.png")
    assert load_set(f"folder:{pictures}", root=Path()).fingerprint != before


def test_broken_folders_are_named(pictures: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_set("folder:nowhere", root=pictures)
    (pictures / "empty").mkdir()
    with pytest.raises(DataError, match=r"class folder .*empty holds no pictures"):
        load_set(f"folder:{pictures}", root=Path())
    (pictures / "empty" / "0.png").write_bytes(b"not a picture")
    for size in (None, 10):
        with pytest.raises(DataError, match=r"cannot read the picture .*empty/0.png"):
            load_set(f"folder:{pictures}", root=Path(), size=size)
    whole = (pictures / "cat" / "0.png").read_bytes()
    (pictures / "empty" / "0.png").write_bytes(whole[: len(whole) // 2])
    damaged = load_set(f"folder:{pictures}", root=Path(), size=10)
    with pytest.raises(DataError, match=r"cannot read the picture .*empty/0.png"):
        damaged.batch(torch.arange(7))


def test_pictures_that_are_not_square_or_differ_need_a_size(pictures: Path) -> None:
    for path in pictures.rglob("*.png"):
        Image.open(path).resize((12, 8)).save(path)
    with pytest.raises(DataError, match="12×8, not square; give a size"):
        load_set(f"folder:{pictures}", root=Path())
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(pictures / "cat" / "0.png")
    with pytest.raises(DataError, match="differ in size"):
        load_set(f"folder:{pictures}", root=Path())
    assert load_set(f"folder:{pictures}", root=Path(), size=8).batch(torch.arange(6)).shape == (6, 3, 8, 8)


def test_unknown_and_absent_sets_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="unknown image set 'cifar01'; did you mean 'cifar10'"):
        load_set("cifar01", root=tmp_path)
    place = tmp_path / "my sets"
    with pytest.raises(DataError, match=r"CIFAR-10 .*not found.*get it with: certood data fetch") as raised:
        load_set("cifar10", root=place)
    # The remedy is a command that the command line takes as it is.
    _, *arguments = shlex.split(str(raised.value).partition("get it with: ")[2])
    asked: list[tuple[Path, str, bool]] = []
    fetched = replace(TORCHVISION_SETS["cifar10"], make=lambda *given: asked.append(given))
    monkeypatch.setitem(TORCHVISION_SETS, "cifar10", fetched)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert asked == [(place, "train", True), (place, "test", True)]
    for name in ("", "npz:", "zip:x", "digits:", "npz:a\0b", "?size=3"):
        with pytest.raises(DataError):
            load_set(name, root=tmp_path)


def test_in_distribution_images_need_labels_and_matching_test_classes(tmp_path: Path) -> None:
    images = np.arange(160, dtype=np.uint8).reshape(10, 4, 4)
    bare = write_npz(tmp_path / "bare.npz", images=images)
    with pytest.raises(DataError, match="has no labels"):
        load_id(bare, root=Path())
    two = write_npz(tmp_path / "two.npz", images=images, labels=np.arange(10) % 2)
    three = write_npz(tmp_path / "three.npz", images=images, labels=np.arange(10) % 3)
    with pytest.raises(DataError, match="2 expected, 3 found; unexpected 2"):
        load_id(two, root=Path(), test=three)
    with pytest.raises(DataError, match="cannot hold out 99 of"):
        load_id(two, root=Path(), validation=99)


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.floats(0.2, 0.8), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_stratified_split_is_a_partition(labels: list[int], share: float, seed: int) -> None:
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    source = ImageSet("x", images, torch.tensor(labels), ("a", "b", "c", "d"))
    try:
        kept, held = stratified_split(source, share, seed)
    except DataError:
        return
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(len(labels)))
    for label in set(labels):
        held_count = int((torch.tensor(labels)[held] == label).sum())
        assert abs(held_count - share * labels.count(label)) <= 0.5 + 1e-9


def test_a_picture_that_occurs_twice_is_in_one_part(tmp_path: Path) -> None:
    """Also under another label; what occurs once is divided as ever."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (100, 4, 4), dtype=np.uint8)
    images[50:75] = images[:25]
    labels = np.arange(100) % 2
    labels[60] = 1 - labels[10]
    parts = load_id(write_npz(tmp_path / "twice.npz", images=images, labels=labels), root=Path(), validation=0.2)
    digests = [set(image_digests(part)) for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, digests)) == 75
    assert len(digests[0] | digests[1] | digests[2]) == 75
    assert sum(len(part) for part in (parts.train, parts.validation, parts.test)) == 100
    assert min(map(len, digests)) > 5


def test_a_class_that_would_not_be_trained_on_is_named(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (103, 4, 4), dtype=np.uint8)
    labels = np.array([0] * 100 + [1, 1, 2])
    rare = write_npz(tmp_path / "rare.npz", images=images, labels=labels, classes=np.array(["a", "b", "c"]))
    assert len(load_id(rare, root=Path(), validation=0.2).train) > 60
    with pytest.raises(DataError, match=r"leaves none of class 'c' to train on \(1 such classes\); hold out fewer"):
        load_id(rare, root=Path(), validation=0.6)
    few = write_npz(tmp_path / "few.npz", images=images[:100], labels=np.arange(100) % 25)
    with pytest.raises(DataError, match="part empty: the smallest class has 3 images"):
        load_id(few, root=Path(), validation=0.1)


def test_crops_are_those_of_a_loop_over_images() -> None:
    images = torch.randint(256, (7, 3, 6, 5), dtype=torch.uint8)
    cropped = random_crop(images, 2, torch.Generator().manual_seed(0))
    offsets = torch.randint(5, (2, 7), generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for index in range(7):
        row, column = offsets[:, index].tolist()
        assert torch.equal(cropped[index], padded[index, :, row : row + 6, column : column + 5])


def test_flips_mirror_about_half_of_the_images() -> None:
    images = torch.arange(4, dtype=torch.uint8).expand(1000, 1, 2, 4).contiguous()
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == images).flatten(1).all(1)).all()
    assert 400 < int(mirrored.sum()) < 600
