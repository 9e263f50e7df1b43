"""Picture files: what a picture becomes, and sets of them that are decoded when they are asked for."""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from certood.data.form import BACKGROUNDS, Form, rgb
from certood.errors import DataError

READERS = min(8, os.cpu_count() or 1)
LARGEST_PICTURE = 2**26
SUSPICIOUS_PICTURE = 2**24
SUSPICIOUS_RATIO = 300
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"})
DEEP_GREY = frozenset({"I", "I;16", "I;16B", "I;16L"})
# Formats whose pictures of kind "I" have 16 bits; elsewhere they have 32.
SIXTEEN_BITS = ("PNG", "PPM")
COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
TRANSPARENT_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
Result = TypeVar("Result")


def pixels(picture: Image.Image, background: str | None) -> Tensor:
    """The pixels of a picture as uint8 (1, C, H, W): C is 1 for grey pictures and 3 for others.

    A 16-bit grey value v becomes (255 v + 32767) / 65535, rounded down; of 16-bit colour Pillow takes the higher byte.
    Palettes become colour; CMYK and YCbCr are converted by Pillow; EXIF orientation is not applied. Alpha a mixes value
    v with the background b to (a v + (255 − a) b + 127) / 255, rounded down. Raises DataError for floats, 32-bit integers,
    transparent pixels without a background, several frames, other colour spaces, and more than 2²⁶ pixels.
    """
    kind = _checked(picture)
    transparent = kind in TRANSPARENT_MODES or "transparency" in picture.info
    if kind in DEEP_GREY:
        if transparent:
            raise DataError("it has 16 bits and a transparent grey value; store 8-bit grey with alpha")
        deep = np.asarray(picture)
        if deep.min() < 0 or deep.max() > 65535:
            raise DataError("it has grey values outside 16 bits; store 8 or 16 bits per channel")
        deep = deep.astype(np.int32)
        return torch.from_numpy(((deep * 255 + 32767) // 65535).astype(np.uint8))[None, None]
    channels = 1 if kind in GREY_MODES else 3
    if not transparent:
        flat = torch.from_numpy(np.array(picture.convert("L" if channels == 1 else "RGB")))
        return flat[None, None] if channels == 1 else flat.permute(2, 0, 1)[None]
    layered = torch.from_numpy(np.array(picture.convert("LA" if channels == 1 else "RGBA"))).permute(2, 0, 1)[None]
    colour, alpha = layered[:, :-1], layered[:, -1:].to(torch.int32)
    if bool((alpha == 255).all()):
        return colour.contiguous()
    if background is None:
        raise DataError("it is transparent; say what is behind it: ?background=black or ?background=white")
    behind = BACKGROUNDS[background]
    return ((alpha * colour + (255 - alpha) * behind + 127) // 255).to(torch.uint8)


def _checked(picture: Image.Image) -> str:
    """The mode of a picture whose header is acceptable; raises DataError for what `pixels` refuses of headers."""
    width, height = picture.size
    if width * height > LARGEST_PICTURE:
        raise DataError(f"it has {width}×{height} pixels, more than {LARGEST_PICTURE:,}; reduce it first")
    if getattr(picture, "is_animated", False):
        raise DataError("it has several frames; store each as a picture of its own")
    if picture.mode not in GREY_MODES | COLOUR_MODES or (picture.mode == "I" and picture.format not in SIXTEEN_BITS):
        raise DataError(f"its pixels are of kind {picture.mode!r}; store 8-bit grey or RGB")
    return picture.mode


class _BoundedFile(io.BufferedReader):
    """A file of which no more is asked than there is: a length in a damaged file would take its memory otherwise."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes; all that is left where it is negative or None."""
        left = max(self.size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def read_picture(what: str, source: Path | Callable[[], Image.Image], use: Callable[[Image.Image], Result]) -> Result:
    """What `use` makes of a picture; every failure to decode it becomes a DataError that names it."""
    try:
        if not isinstance(source, Path):
            with source() as picture:
                return use(picture)
        with _BoundedFile(source) as file, Image.open(file) as picture:
            _require_plausible(picture, file.size)
            return use(picture)
    except DataError as error:
        raise DataError(f"cannot use the picture {what}: {error}") from error
    except Exception as error:
        # Decoders raise whatever their format's library raises: OSError, SyntaxError, struct.error, MemoryError …
        raise DataError(f"cannot read the picture {what} ({error}); repair or remove it") from error


def _require_plausible(picture: Image.Image, size: int) -> None:
    """Raise DataError for a large picture in a file of so few bytes (`size`) that it is no photograph."""
    count = picture.width * picture.height
    if count > SUSPICIOUS_PICTURE and count > SUSPICIOUS_RATIO * size:
        raise DataError(
            f"its {size:,} bytes would expand to {picture.width}×{picture.height} pixels, which looks like a "
            "decompression bomb; reduce it first"
        )


def decoded(picture: Image.Image, form: Form, channels: int) -> Tensor:
    """A picture as one image (channels, H, W) of a set in this form; a grey picture of a colour set gets equal channels."""
    found = pixels(picture, form.background)
    return form(rgb(found) if channels == 3 and form.colour is None else found)[0]


def header_shape(picture: Image.Image) -> tuple[int, int, int]:
    """(C, H, W) that `pixels` will give, from the header alone; raises DataError for what it refuses of headers."""
    channels = 1 if _checked(picture) in GREY_MODES else 3
    return channels, picture.height, picture.width


def batched(read: Callable[[int], Tensor], indices: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The images (n, C, H, W) of this shape that `read` gives for these indices, read by a pool of threads."""
    if not len(indices):
        return torch.empty(0, *shape, dtype=torch.uint8)
    with ThreadPoolExecutor(READERS) as readers:
        return torch.stack(list(readers.map(read, indices.tolist())))
