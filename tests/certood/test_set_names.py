"""Options of a set's name: which classes, and the rules of colour and size, against other implementations of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from certood.data import load_set, require_same_shape
from certood.data.form import Form
from certood.data.names import SetName, selected_classes
from certood.errors import DataError

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    labels = np.arange(52) % 26
    np.savez(
        tmp_path / "letters.npz",
        images=generator.integers(0, 256, (52, 8, 8), dtype=np.uint8),
        labels=labels,
        classes=np.array(LETTERS),
    )
    np.savez(tmp_path / "colour.npz", images=generator.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))
    return tmp_path


def all_images(name: str, root: Path, size: int | None = None) -> Tensor:
    source = load_set(name, root=root, size=size)
    return source.batch(torch.arange(len(source)))


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("a-m", "abcdefghijklm"), ("z,a-c", "abcz"), ("a-b,b-d", "abcd"), ("q", "q"), ("n-z", "nopqrstuvwxyz")],
)
def test_classes_are_chosen_by_names_and_ranges(root: Path, text: str, chosen: str) -> None:
    whole = load_set("npz:letters.npz", root=root)
    some = load_set(f"npz:letters.npz?classes={text}", root=root)
    assert some.classes == tuple(chosen)
    assert some.labels is not None
    expected = [index for index in range(52) if LETTERS[index % 26] in chosen]
    assert torch.equal(some.batch(torch.arange(len(some))), whole.batch(torch.tensor(expected)))
    assert [some.classes[label] for label in some.labels.tolist()] == [LETTERS[index % 26] for index in expected]


def test_some_images_are_spread_over_the_set(root: Path) -> None:
    whole = all_images("npz:letters.npz", root)
    assert torch.equal(all_images("npz:letters.npz?images=26", root), whole[::2])
    assert torch.equal(all_images("npz:letters.npz?images=52", root), whole)
    five = load_set("npz:letters.npz?images=5", root=root)
    assert torch.equal(five.batch(torch.arange(5)), whole[[0, 10, 20, 31, 41]])
    assert five.labels is not None
    assert five.labels.tolist() == [0, 10, 20, 5, 15]
    chosen = load_set("npz:letters.npz?classes=c-d&images=2", root=root)
    assert torch.equal(chosen.batch(torch.arange(2)), whole[[2, 28]])
    assert (
        len({load_set(f"npz:letters.npz{text}", root=root).fingerprint for text in ("", "?images=26", "?images=5")})
        == 3
    )


def test_classes_of_any_source_can_be_chosen(root: Path) -> None:
    assert load_set("digits?classes=0-4", root=root).classes == ("0", "1", "3", "4")
    near = load_set("digits-near?classes=9", root=root)
    whole = load_set("digits-near", root=root)
    assert whole.labels is not None
    assert len(near) == int((whole.labels == 1).sum()) > 100
    assert len(load_set("digits-auxiliary?classes=photo", root=root)) == 500
    for label in ("cat", "dog"):
        (root / "set" / label).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), len(label), np.uint8)).save(root / "set" / label / f"{label}.png")
    assert load_set("folder:set?classes=dog", root=root).labels.tolist() == [0]  # type: ignore[union-attr]


def test_names_with_the_letters_of_the_syntax_can_be_written() -> None:
    classes = ["a", "b", "a-b", "c,d", "t-shirt", "é"]
    assert selected_classes("a-b", classes, "x") == [2]
    assert selected_classes("a-t-shirt", classes, "x") == [0, 1, 2, 3, 4]
    assert selected_classes("c%2Cd,%C3%A9", classes, "x") == [3, 5]
    assert selected_classes("a%2Db", classes, "x") == [2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("npz:letters.npz?classes=m-a", "no range in label order"),
        ("npz:letters.npz?classes=aa", "neither a class nor a range"),
        ("npz:letters.npz?classes=", "expected option=value"),
        ("npz:letters.npz?classes=a,,b", "neither a class nor a range"),
        ("npz:letters.npz?", "expected option=value"),
        ("npz:letters.npz?colour=blue", "colour is one of grey, rgb"),
        ("npz:letters.npz?color=grey", "with the options classes, images, colour"),
        ("npz:letters.npz?images=0", "images is a number from 1 to 52, found 0"),
        ("npz:letters.npz?classes=a&images=3", "images is a number from 1 to 2, found 3"),
        ("npz:letters.npz?images=many", "images is a number, found 'many'"),
        ("npz:letters.npz?size=8&size=9", "given twice"),
        ("npz:letters.npz?size=8&pad=9", "only one of size, crop and pad"),
        ("npz:letters.npz?size=-1", "a number of pixels"),
        ("npz:letters.npz?size=0", "from 1 to 4096"),
        ("npz:letters.npz?size=5000", "from 1 to 4096"),
        ("npz:letters.npz?size=" + "9" * 5000, "a number of pixels"),
        ("npz:letters.npz?crop=9", "cannot crop images of 8×8 pixels to 9×9"),
        ("npz:letters.npz?pad=7", "cannot pad images of 8×8 pixels to 7×7"),
        ("npz:colour.npz?classes=a", "has no classes to choose from"),
    ],
)
def test_options_that_mean_nothing_are_refused(root: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_set(name, root=root)


@pytest.mark.parametrize("size", [-1, 0, 5000, True])
def test_a_size_that_is_none_is_refused(root: Path, size: int) -> None:
    with pytest.raises(DataError, match="size is a number of pixels"):
        load_set("digits", root=root, size=size)


def test_grey_is_the_luma_that_pillow_computes(root: Path) -> None:
    with np.load(root / "colour.npz") as file:
        colour = file["images"]
    found = all_images("npz:colour.npz?colour=grey", root)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colour])
    np.testing.assert_array_equal(found[:, 0].numpy(), expected)
    # ITU-R BT.601, in exact arithmetic, is at most half a level away from its rounding.
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found[:, 0].numpy() - luma).max() < 0.51


def test_colour_of_grey_is_three_equal_channels(root: Path) -> None:
    grey, found = all_images("npz:letters.npz", root), all_images("npz:letters.npz?colour=rgb", root)
    assert found.shape == (52, 3, 8, 8)
    assert all(torch.equal(found[:, channel], grey[:, 0]) for channel in range(3))
    # There and back again.
    assert torch.equal(Form(colour="grey")(found), grey)
    assert torch.equal(Form(colour="grey")(grey), grey)


def test_crop_takes_the_middle_and_pad_puts_black_around(root: Path) -> None:
    colour = all_images("npz:colour.npz", root)
    assert torch.equal(all_images("npz:colour.npz?crop=28", root), colour[..., 2:30, 2:30])
    padded = all_images("npz:colour.npz?pad=35", root)
    assert torch.equal(padded[..., 1:33, 1:33], colour)
    assert int(padded.sum()) == int(colour.sum())


def test_a_size_resizes_as_pillow_does(root: Path) -> None:
    with np.load(root / "colour.npz") as file:
        colour = file["images"]
    found = all_images("npz:colour.npz?size=28", root).permute(0, 2, 3, 1).numpy().astype(int)
    expected = np.stack(
        [np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR)) for image in colour]
    )
    assert np.abs(found - expected).max() <= 1


def test_the_size_of_all_sets_yields_to_that_of_the_name(root: Path) -> None:
    assert load_set("npz:colour.npz", root=root, size=16).shape == (3, 16, 16)
    assert load_set("npz:colour.npz?size=20", root=root, size=16).shape == (3, 20, 20)
    assert load_set("npz:colour.npz?crop=20&colour=grey", root=root, size=16).shape == (1, 20, 20)
    assert SetName.parse("x?pad=9", 16).form == Form(pad=9)


def test_what_does_not_fit_is_told_the_options_that_make_it_fit(root: Path) -> None:
    letters, colour = load_set("npz:letters.npz", root=root), load_set("npz:colour.npz", root=root)
    with pytest.raises(DataError, match=r"name it npz:colour\.npz\?colour=grey&size=8 or leave it out") as raised:
        require_same_shape([letters, colour])
    advised = str(raised.value).split("name it ")[1].split(" or ")[0]
    assert require_same_shape([letters, load_set(advised, root=root)]) == (1, 8, 8)
    with pytest.raises(DataError, match=r"name it npz:letters\.npz\?classes=a&colour=rgb&size=32"):
        require_same_shape([colour, load_set("npz:letters.npz?classes=a", root=root)])
    with pytest.raises(DataError, match=r"name it npz:colour\.npz\?size=8&colour=grey or"):
        require_same_shape([letters, load_set("npz:colour.npz?size=8", root=root)])
