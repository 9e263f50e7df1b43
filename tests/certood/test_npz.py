"""npz files: headers are believed only as far as they are true, and every other file is one error."""

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from certood.data import load_set
from certood.data.source import ImageSet
from certood.errors import CertoodError, DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array)
    return content.getvalue()


def npy_that_says(shape: tuple[int, ...], content: bytes, descr: str = "|u1") -> bytes:
    """An array whose header claims a shape and whose content is this."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def archive(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return f"npz:{path}"


def refused(name: str, message: str) -> None:
    """Loading fails with one DataError, and without much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            load_set(name, root=Path())
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    for side in (1_000, 10**6, 10**12):
        name = archive(tmp_path / "x.npz", images=npy_that_says((side, side, side), b"\0" * 100))
        refused(name, "the file is damaged")


@pytest.mark.slow
def test_a_decompression_bomb_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    path, size = tmp_path / "bomb.npz", 5 * 2**28
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("images.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy_that_says((size // 1024, 32, 32), b""))
        for _ in range(size // 2**24):
            member.write(bytes(2**24))
    assert path.stat().st_size < 5e6
    refused(f"npz:{path}", "looks like a decompression bomb")


def test_labels_of_a_thousand_millions_make_no_thousand_millions_of_classes(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 3, 4, 10**9])
    refused(
        archive(tmp_path / "x.npz", images=npy(IMAGES), labels=npy(labels)), r"labels in 0\.\.5 .*found 0\.\.1000000000"
    )
    huge = np.array([2**64 - 1] * 6, np.uint64)
    refused(archive(tmp_path / "y.npz", images=npy(IMAGES), labels=npy(huge)), "found 18446744073709551615")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"classes": np.array("cat")}, r"expected `classes` of shape \(classes,\)"),
        ({"classes": np.array([1, 2])}, "expected `classes`"),
        ({"classes": np.array(["a" * 300])}, "names of at most 200 characters"),
        ({"classes": np.array(["a", "b", "a"])}, "holds a more than once"),
        ({"classes": np.array([b"\xff", b"b", b"c"])}, "not text in UTF-8"),
        ({"classes": np.array(["a", "b"])}, r"labels in 0\.\.1 \(2 `classes`\), found 0\.\.2"),
        ({"labels": np.float32([0, 1, 2, 0, 1, 2])}, "expected integer `labels`"),
        ({"labels": np.array(3)}, "expected integer `labels`"),
        ({"labels": np.zeros((6, 1), int)}, "expected integer `labels`"),
        ({"images": np.array(3, np.uint8)}, "expected `images` of uint8"),
        ({"images": np.zeros((3, 4, 4), bool)}, "expected `images` of uint8"),
        ({"images": np.zeros((2, 0, 4), np.uint8)}, "holds no images"),
        ({"images": np.zeros((6, 4, 4, 4), np.uint8)}, "1 or 3 channels last"),
    ],
)
def test_arrays_that_are_something_else(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    given_arrays = {"images": IMAGES, "labels": np.arange(6) % 3} | arrays
    refused(archive(tmp_path / "x.npz", **{key: npy(value) for key, value in given_arrays.items()}), message)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=np.arange(6), classes=np.array([object()] * 6, dtype=object))
    refused(f"npz:{tmp_path / 'x.npz'}", "expected `classes`")


def test_an_npy_file_is_told_apart_from_damage(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    refused(f"npz:{tmp_path / 'x.npz'}", r"it is an \.npy file, a single array: write it with numpy\.savez")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_named(tmp_path: Path, compression: int) -> None:
    refused(
        archive(tmp_path / "x.npz", compression, images=npy(IMAGES)),
        f"by method {compression}, expected none or deflate",
    )


def test_encryption_and_an_unknown_method_are_named(tmp_path: Path) -> None:
    plain = Path(archive(tmp_path / "x.npz", images=npy(IMAGES)).removeprefix("npz:")).read_bytes()
    directory = plain.index(b"PK\x01\x02")
    for place, value, message in ((8, 1, "is encrypted"), (10, 99, "by method 99")):
        changed = bytearray(plain)
        changed[directory + place] = value
        changed[place - 2] = value
        (tmp_path / "y.npz").write_bytes(bytes(changed))
        refused(f"npz:{tmp_path / 'y.npz'}", message)


def test_a_flipped_bit_of_the_pixels_is_noticed(tmp_path: Path) -> None:
    path = Path(archive(tmp_path / "x.npz", images=npy(IMAGES)).removeprefix("npz:"))
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 17] ^= 1
    path.write_bytes(bytes(content))
    refused(f"npz:{path}", "not a readable npz file .*CRC")


def valid() -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, images=IMAGES, labels=np.arange(6) % 3, classes=np.array(["a", "b", "c"]))
    return content.getvalue()


VALID = valid()
CHANGES = st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=8)


@seed(14)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, cut=st.one_of(st.none(), st.integers(0, len(VALID))))
def test_a_damaged_file_is_the_same_images_or_one_error(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(VALID)
    for place, value in changes:
        content[place] = value
    (tmp_path / "x.npz").write_bytes(bytes(content[:cut]))
    try:
        found = load_set("npz:x.npz", root=tmp_path)
    except CertoodError:
        return
    assert isinstance(found, ImageSet)
    assert torch.equal(found.images[:, 0], torch.from_numpy(IMAGES))
