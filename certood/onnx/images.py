"""How images (N, C, H, W) in pixels become the input that an ONNX network takes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from certood.errors import CheckpointError

CHANNELS = (1, 3)
# Up to so many values, an image is small: comparing on another one takes no time that one would notice.
FEW_VALUES = 2**15


@dataclass(frozen=True)
class ImageLayout:
    """Images (C, H, W), and the shape in which the network takes one of them.

    `channels_last` networks take (H, W, C). Other shapes are the image's values in row-major order.
    """

    image_shape: tuple[int, int, int]
    network_shape: tuple[int, ...]
    channels_last: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """What the network takes, for images (N, C, H, W)."""
        if self.channels_last:
            images = images.permute(0, 2, 3, 1)
        if self.network_shape != tuple(images.shape[1:]):
            images = images.reshape(images.shape[0], *self.network_shape)
        return images


def image_layout(
    declared: tuple[int | str | None, ...], image_shape: tuple[int, int, int] | None = None
) -> ImageLayout:
    """The layout for a declared input shape, batch axis included; `image_shape` (C, H, W) is checked against it.

    (N, C, H, W) is as it says. (N, H, W, C) with one or three channels last, and not first, is channels-last. (N, H, W) is
    grey. Other shapes, such as (N, 784), need `image_shape`, whose values in row-major order they are. Raises
    CheckpointError where the network takes a fixed number of images other than one, or the shapes do not suit.
    """
    text = f"({', '.join('?' if size is None else str(size) for size in declared)})"
    if len(declared) < 2:
        raise CheckpointError(f"the ONNX network takes an input of shape {text}, which has no axis for the images")
    if isinstance(declared[0], int) and declared[0] != 1:
        raise CheckpointError(
            f"the ONNX network takes exactly {declared[0]} images at once, {text}; export it for one or with a dynamic axis"
        )
    sizes = declared[1:]
    if not all(isinstance(size, int) for size in sizes):
        if image_shape is None or len(sizes) != 3:
            raise CheckpointError(
                f"the ONNX network takes images of any size, {text}: say which with input_shape (--input-shape C,H,W)"
            )
        sizes = tuple(
            given if not isinstance(size, int) else size for size, given in zip(sizes, image_shape, strict=True)
        )
    shape = tuple(int(size) for size in sizes if isinstance(size, int))
    layout = _understood(shape, image_shape)
    if layout is None:
        raise CheckpointError(
            f"the ONNX network takes an input of shape {text}: say of which images it is the values, with input_shape "
            "(--input-shape C,H,W)"
        )
    if image_shape is not None and image_shape != layout.image_shape:
        raise CheckpointError(
            f"the ONNX network takes an input of shape {text}, which images of shape {image_shape} do not suit"
        )
    return layout


def _understood(shape: tuple[int, ...], image_shape: tuple[int, int, int] | None) -> ImageLayout | None:
    if len(shape) == 3:
        channels_last = shape[0] not in CHANNELS and shape[2] in CHANNELS
        height_first = (shape[2], shape[0], shape[1])
        if (channels_last and image_shape != shape) or (image_shape == height_first and image_shape != shape):
            return ImageLayout(height_first, shape, channels_last=True)
        if image_shape is None or 1 not in shape[1:]:
            return ImageLayout((shape[0], shape[1], shape[2]), shape)
    if image_shape is not None and math.prod(image_shape) == math.prod(shape):
        return ImageLayout(image_shape, shape)
    return ImageLayout((1, shape[0], shape[1]), shape) if len(shape) == 2 and shape[1] > 1 else None


def witness_images(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Images (N, C, H, W) in float64 inside, at corners and on faces of [0, 1]^d, for comparing two networks.

    One uniform, and one of 0, 1 and uniform values mixed; for small images also one of zeros and ones at random and one of 0
    and 1 by halves of the image.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform, mixed, corner = torch.rand(3, *shape, dtype=torch.float64, generator=generator)
    found = [uniform, (mixed * 2 - 0.5).clamp(0, 1)]
    if uniform.numel() <= FEW_VALUES:
        halves = torch.zeros(shape, dtype=torch.float64)
        halves[:, : (shape[1] + 1) // 2] = 1.0
        found += [corner.round(), halves]
    return torch.stack(found)
