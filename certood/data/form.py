"""The rules by which images take another colour, size or background: asked for by name, never applied unasked."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.errors import DataError

CHANNELS = {"grey": 1, "rgb": 3}
BACKGROUNDS = {"black": 0, "white": 255}
LARGEST_SIDE = 4096
PART = 1000


@dataclass(frozen=True)
class Form:
    """What is done to the images of a set, in this order; None leaves them as they are.

    `background` ("black", "white"): what stands behind transparent pictures, which are refused without it.
    `colour` ("grey", "rgb"): see `grey` and `rgb`. Then one of `size` (central square, resized: see `resized`), `crop`
    (the central crop×crop pixels) and `pad` (pad×pad pixels, black around the image). Raises DataError for other values.
    """

    colour: str | None = None
    size: int | None = None
    crop: int | None = None
    pad: int | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        for option, value, known in (
            ("colour", self.colour, CHANNELS),
            ("background", self.background, BACKGROUNDS),
        ):
            if value is not None and value not in known:
                raise DataError(f"{option} is one of {', '.join(known)}, found {value!r}")
        sides = {key: getattr(self, key) for key in ("size", "crop", "pad") if getattr(self, key) is not None}
        for option, side in sides.items():
            if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE:
                raise DataError(f"{option} is a number of pixels from 1 to {LARGEST_SIDE}, found {side!r}")
        if len(sides) > 1:
            raise DataError(f"only one of size, crop and pad can be asked for, found {' and '.join(sides)}")

    @property
    def side(self) -> int | None:
        """The height and width that every image gets, or None where they keep their own."""
        return self.size or self.crop or self.pad

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) in this form."""
        if self.colour == "grey":
            images = grey(images)
        elif self.colour == "rgb":
            images = rgb(images)
        if self.size is not None:
            return resized(images, self.size)
        if self.crop is not None:
            return cropped(images, self.crop)
        if self.pad is not None:
            return padded(images, self.pad)
        return images

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The (C, H, W) of images that had `shape`."""
        channels = shape[0] if self.colour is None else CHANNELS[self.colour]
        return (channels, *shape[1:]) if self.side is None else (channels, self.side, self.side)


def grey(images: Tensor) -> Tensor:
    """Luma of uint8 images (N, C, H, W): Y = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded; (N, 1, H, W).

    In 16-bit fixed point: (19595 R + 38470 G + 7471 B + 2¹⁵) / 2¹⁶, rounded down. Grey images stay as they are.
    """
    if images.shape[1] == 1:
        return images
    parts = []
    for part in images.split(PART):
        red, green, blue = part.to(torch.int32).unbind(1)
        parts.append(((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).to(torch.uint8)[:, None])
    return torch.cat(parts)


def rgb(images: Tensor) -> Tensor:
    """Three equal channels of grey uint8 images (N, 1, H, W); colour images stay as they are."""
    return images.expand(-1, 3, -1, -1).contiguous() if images.shape[1] == 1 else images


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 images (N, C, H, W), cropped to their central square and resized to size×size: antialiased bilinear, rounded."""
    if images.shape[-2:] == (size, size):
        return images
    square = cropped(images, min(images.shape[-2:]))
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for part in square.split(PART)
    ]
    return torch.cat(parts)


def cropped(images: Tensor, side: int) -> Tensor:
    """The central side×side pixels of images (N, C, H, W); of an odd rest the larger half is below and right.

    Raises DataError where they are smaller.
    """
    height, width = images.shape[-2:]
    if min(height, width) < side:
        raise DataError(f"cannot crop images of {width}×{height} pixels to {side}×{side}; use size or pad")
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side].contiguous()


def padded(images: Tensor, side: int) -> Tensor:
    """side×side pixels with the images (N, C, H, W) in the middle and black around; of an odd rest more is below and right.

    Raises DataError where they are larger.
    """
    height, width = images.shape[-2:]
    if max(height, width) > side:
        raise DataError(f"cannot pad images of {width}×{height} pixels to {side}×{side}; use size or crop")
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top))
