"""SHA-256 of files and of images."""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from certood.data.source import ImageSource
from certood.errors import DataError

READERS = 8
BATCH = 1000
# Changes within the resolution of a file system's clock leave the time as it is.
FRESH = 2_000_000_000
_known: dict[tuple[str, int, int, int, int], bytes] = {}


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's bytes.

    Within one process a file is read once as long as path, size, inode and times of modification and change stay the
    same. A file modified less than two seconds ago is always read. Nothing is remembered on disk.
    """
    try:
        status = path.stat()
        key = (str(path.absolute()), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > FRESH
        if settled and key in _known:
            return _known[key]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if settled:
        _known[key] = digest
    return digest


def file_digests(paths: Iterable[Path]) -> list[bytes]:
    """`file_digest` of every path, in order, by a pool of threads."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(file_digest, paths))


def tensor_bytes(values: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order."""
    return values.detach().cpu().contiguous().numpy().data


def image_digests(source: ImageSource) -> list[bytes]:
    """A SHA-256 of every image's shape and pixels, in order; a damaged picture raises DataError."""
    shape = repr(source.shape).encode()
    digests = []
    for indices in torch.arange(len(source)).split(BATCH):
        images = source.batch(indices).cpu().contiguous().numpy()
        digests += [hashlib.sha256(shape + image.tobytes()).digest() for image in images]
    return digests
