"""Image sets in npz files: headers are checked before memory is taken, and no pickle is read."""

import os
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certood.data.form import Form
from certood.data.source import ImageSet
from certood.errors import DataError

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
# Deflate cannot shrink more than this; a header that says more does not tell the truth.
LARGEST_RATIO = 1032
SUSPICIOUS_RATIO = 100
SUSPICIOUS_BYTES = 2**30
LONGEST_NAME = 200
READ_PROBLEMS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def load_npz(name: str, path: Path, form: Form) -> ImageSet:
    """An npz file with `images` (uint8 NHWC or NHW) and, optionally, `labels` (integers) and `classes` (names).

    Raises DataError where the file is missing, damaged, encrypted, expands to more than this machine's memory, or holds
    something else.
    """
    if not path.is_file():
        raise DataError(f"image set {name!r}: no file {path.absolute()}; give npz:PATH, absolute or below --data-root")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if "images.npy" not in members:
                raise DataError(f"{path} has no array `images` (uint8, NHWC or NHW)")
            arrays = {
                key: _member(path, archive, members[f"{key}.npy"])
                for key in ("images", "labels", "classes")
                if f"{key}.npy" in members
            }
    except READ_PROBLEMS as error:
        raise DataError(f"{path} is not a readable npz file ({_reason(path, error)})") from error
    images = arrays["images"]
    labels, classes = _labels(path, arrays, len(images))
    channels_first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    try:
        return ImageSet(name, form(torch.from_numpy(np.ascontiguousarray(channels_first))), labels, classes)
    except MemoryError as error:
        raise DataError(f"{path}: images of shape {images.shape} do not fit into memory") from error


def _reason(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            single = file.read(6) == b"\x93NUMPY"
    except OSError:
        single = False
    if single:
        return "it is an .npy file, a single array: write it with numpy.savez(path, images=…)"
    return f"{error}; write it again with numpy.savez"


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One array of the archive, read after its header says that it is what is expected and fits into memory."""
    key = info.filename.removesuffix(".npy")
    if info.flag_bits & ENCRYPTED:
        raise DataError(f"{path}: `{key}` is encrypted; write the file again with numpy.savez")
    if info.compress_type not in COMPRESSIONS:
        raise DataError(
            f"{path}: `{key}` is compressed by method {info.compress_type}, expected none or deflate; "
            "write the file again with numpy.savez or numpy.savez_compressed"
        )
    with archive.open(info) as file:
        shape, dtype, header = _header(file)
    _check_kind(path, key, shape, dtype)
    declared = int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize
    if declared + header != info.file_size or info.file_size > LARGEST_RATIO * max(info.compress_size, 1):
        raise DataError(
            f"{path}: `{key}` says that it has {declared:,} bytes, the archive {info.file_size - header:,} in "
            f"{info.compress_size:,}: the file is damaged; write it again with numpy.savez"
        )
    if declared > SUSPICIOUS_BYTES and declared > SUSPICIOUS_RATIO * info.compress_size:
        raise DataError(
            f"{path}: `{key}` would expand from {info.compress_size:,} to {declared:,} bytes, which looks like a "
            "decompression bomb; store real images uncompressed (numpy.savez)"
        )
    if declared > _memory():
        raise DataError(f"{path}: `{key}` has {declared:,} bytes, more than this machine's memory; use folder:PATH")
    with archive.open(info) as file:
        try:
            found: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        except MemoryError as error:
            raise DataError(f"{path}: `{key}` of {declared:,} bytes does not fit into memory") from error
        # Reading to the end compares the checksum, also of an array of no bytes.
        file.read()
    return found


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and length in bytes of the header of an .npy file."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"unknown version {version} of the npy format")
    shape, _, dtype = readers[version](file)
    return shape, dtype, file.tell()


def _memory() -> float:
    """The machine's memory in bytes; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _check_kind(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise DataError where an array is not what its name says."""
    if key == "images":
        if dtype != np.uint8 or len(shape) not in (3, 4):
            remedy = _remedy(dtype)
            raise DataError(f"{path}: expected `images` of uint8, NHWC or NHW, found {dtype} {shape}{remedy}")
        if len(shape) == 4 and shape[-1] not in (1, 3):
            raise DataError(f"{path}: expected 1 or 3 channels last (NHWC), found shape {shape}")
        if 0 in shape:
            raise DataError(f"{path} holds no images: `images` has shape {shape}")
    elif key == "labels":
        if len(shape) != 1 or dtype.kind not in "iu":
            raise DataError(f"{path}: expected integer `labels` of shape (images,), found {dtype} {shape}")
    elif len(shape) != 1 or dtype.kind not in "US" or dtype.itemsize > 4 * LONGEST_NAME:
        raise DataError(
            f"{path}: expected `classes` of shape (classes,), names of at most {LONGEST_NAME} characters, "
            f"found {dtype} {shape}"
        )


def _remedy(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        return "; multiply images in [0, 1] by 255, round, and store uint8 (images in 0–255: round and store uint8)"
    return ""


def _labels(path: Path, arrays: dict[str, NDArray[Any]], count: int) -> tuple[Tensor | None, tuple[str, ...]]:
    if "labels" not in arrays:
        return None, ()
    labels, classes = arrays["labels"], arrays.get("classes")
    if labels.shape != (count,):
        raise DataError(f"{path}: expected {count} integer `labels`, found {labels.dtype} {labels.shape}")
    least, most = int(labels.min()), int(labels.max())
    limit = count if classes is None else len(classes)
    if least < 0 or most >= limit:
        source = f"{count} images without `classes`" if classes is None else f"{limit} `classes`"
        raise DataError(f"{path}: expected labels in 0..{limit - 1} ({source}), found {least}..{most}")
    names = [str(i) for i in range(most + 1)] if classes is None else [_text(path, item) for item in classes.tolist()]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{path}: `classes` holds {', '.join(twice[:5])} more than once; give each its own name")
    return torch.from_numpy(labels.astype(np.int64)), tuple(names)


def _text(path: Path, item: str | bytes) -> str:
    try:
        return item.decode() if isinstance(item, bytes) else item
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: `classes` are not text in UTF-8; store numpy.array([...]) of str") from error
