"""What a picture becomes: stated rules for depth, transparency, colour and frames; damaged files are one error each."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from certood.data import load_set
from certood.errors import CertoodError, DataError


def stored(folder: Path, picture: Image.Image, name: str = "0.png", **options: object) -> Path:
    folder.mkdir(exist_ok=True)
    picture.save(folder / name, **options)
    return folder


def only(folder: Path, options: str = "") -> torch.Tensor:
    return load_set(f"folder:{folder}{options}", root=Path()).batch(torch.tensor([0]))[0]


def test_16_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for name in ("0.png", "0.tif"):
        found = only(stored(tmp_path / name[2:], Image.fromarray(deep), name))
        np.testing.assert_array_equal(found[0].numpy(), np.rint(deep / 65535 * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((4, 4), 0.5, np.float32), "of kind 'F'; store 8-bit grey or RGB"),
        (np.full((4, 4), 70_000, np.int32), "of kind 'I'; store 8-bit grey or RGB"),
        (np.full((4, 4), 200, np.int32), "of kind 'I'; store 8-bit grey or RGB"),
    ],
)
def test_pixels_without_a_rule_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    folder = stored(tmp_path / "set", Image.fromarray(pixels), "0.tif")
    with pytest.raises(DataError, match=message):
        only(folder)


def transparent() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA")


@pytest.mark.parametrize(("background", "behind"), [("black", 0), ("white", 255)])
def test_transparency_is_mixed_with_the_background_that_is_named(tmp_path: Path, background: str, behind: int) -> None:
    picture = transparent()
    folder = stored(tmp_path / "set", picture)
    with pytest.raises(DataError, match=r"is transparent; say what is behind it: \?background=black"):
        only(folder)
    values = np.asarray(picture).astype(float)
    expected = values[..., :3] * values[..., 3:] / 255 + behind * (1 - values[..., 3:] / 255)
    np.testing.assert_array_equal(only(folder, f"?background={background}").permute(1, 2, 0).numpy(), np.rint(expected))


def test_other_kinds_of_transparency_are_seen_as_well(tmp_path: Path) -> None:
    palette = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6), "L").convert("P")
    keyed = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6), "L")
    with_alpha = transparent().convert("LA")
    for name, picture, options in (
        ("p", palette, {"transparency": 3}),
        ("l", keyed, {"transparency": 3}),
        ("la", with_alpha, {}),
    ):
        folder = stored(tmp_path / name, picture, **options)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="is transparent"):
            only(folder)
    assert int(only(tmp_path / "l", "?background=white")[0, 0, 3]) == 255
    assert int(only(tmp_path / "l", "?background=black")[0, 0, 3]) == 0
    assert int(only(tmp_path / "l", "?background=black")[0, 0, 4]) == 4


def test_an_opaque_alpha_channel_is_no_transparency(tmp_path: Path) -> None:
    picture = transparent()
    picture.putalpha(255)
    found = only(stored(tmp_path / "set", picture))
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), np.asarray(picture)[..., :3])


@pytest.mark.parametrize("size", ["", "?size=6"])
def test_one_grey_picture_does_not_make_a_set_grey(tmp_path: Path, size: str) -> None:
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6)
    colour = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    stored(tmp_path / "set", Image.fromarray(grey), "0.png")
    stored(tmp_path / "set", Image.fromarray(colour), "1.png")
    found = load_set(f"folder:{tmp_path / 'set'}{size}", root=Path())
    assert found.shape == (3, 6, 6)
    images = found.batch(torch.arange(2)).numpy()
    np.testing.assert_array_equal(images[0], np.stack([grey] * 3))
    np.testing.assert_array_equal(images[1], colour.transpose(2, 0, 1))


def test_several_frames_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((5, 5), value, np.uint8)) for value in (0, 100, 200)]
    folder = stored(tmp_path / "set", frames[0], "0.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="several frames"):
        only(folder)


def test_folders_of_splits_are_not_classes(tmp_path: Path) -> None:
    for name in ("train", "test"):
        stored_in = tmp_path / name / "cat"
        stored_in.mkdir(parents=True)
        stored(stored_in, Image.fromarray(np.zeros((4, 4), np.uint8)))
    with pytest.raises(
        DataError, match=r"look like the splits of a set.*/train \(and as test images, data.id_test: .*/test\)"
    ):
        load_set(f"folder:{tmp_path}", root=Path())
    assert load_set(f"folder:{tmp_path}/train", root=Path()).classes == ("cat",)
    # A class that happens to be called "train" is one among others.
    (tmp_path / "test").rename(tmp_path / "tram")
    assert load_set(f"folder:{tmp_path}", root=Path()).classes == ("train", "tram")


def test_pictures_beside_class_folders_are_not_left_out_silently(tmp_path: Path) -> None:
    stored(tmp_path / "cat", Image.fromarray(np.zeros((4, 4), np.uint8)))
    stored(tmp_path, Image.fromarray(np.zeros((4, 4), np.uint8)), "stray.png")
    with pytest.raises(DataError, match=r"1 pictures beside them \(stray.png\)"):
        load_set(f"folder:{tmp_path}", root=Path())


def png_that_says(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [5_000, 9_000, 20_000, 2_000_000_000])
def test_a_picture_larger_than_any_photograph_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "0.png").write_bytes(png_that_says(side, side))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"picture .*0\.png"):
        load_set(f"folder:{tmp_path}?size=8", root=Path())
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 1e6


def test_a_picture_that_changed_its_size_after_the_set_was_opened_is_noticed(tmp_path: Path) -> None:
    folder = stored(tmp_path / "set", Image.fromarray(np.zeros((4, 4), np.uint8)))
    opened = load_set(f"folder:{folder}", root=Path())
    stored(folder, Image.fromarray(np.zeros((5, 5), np.uint8)))
    with pytest.raises(DataError, match=r"now gives \(1, 5, 5\)"):
        opened.batch(torch.tensor([0]))


def encoded(kind: str) -> bytes:
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    content = io.BytesIO()
    picture.save(content, kind)
    return content.getvalue()


ENCODED = {kind: encoded(kind) for kind in ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm")}
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6)


@seed(13)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(ENCODED)), changes=CHANGES, cut=st.one_of(st.none(), st.integers(0, 400)))
def test_a_damaged_picture_is_a_picture_or_one_error(
    tmp_path: Path, kind: str, changes: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(ENCODED[kind])
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / f"0.{kind}"
    for other in tmp_path.iterdir():
        other.unlink()
    path.write_bytes(bytes(content[:cut]))
    try:
        found = load_set(f"folder:{tmp_path}?size=9", root=Path()).batch(torch.tensor([0]))
    except CertoodError:
        return
    assert found.dtype == torch.uint8
    assert found.shape[2:] == (9, 9)
