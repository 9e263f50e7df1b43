"""Augmentation of whole batches on their device, from a seeded generator."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Crops of the original size, each at its own random place after zero padding by `padding` pixels on every side.

    `images` is (N, C, H, W) of any type; the generator must live on its device.
    """
    count, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, count), device=images.device, generator=generator)
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = offsets[0, :, None] + torch.arange(height, device=images.device)
    columns = offsets[1, :, None] + torch.arange(width, device=images.device)
    sample = torch.arange(count, device=images.device)
    cropped = padded.permute(0, 2, 3, 1)[sample[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (C, H, W) of the batch mirrored left to right with probability ½."""
    flipped = torch.rand(len(images), device=images.device, generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding by `padding` pixels, and random flip; neither by default."""

    padding: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images (N, C, H, W) of the same type and shape."""
        if self.padding:
            images = random_crop(images, self.padding, generator)
        if self.flip:
            images = random_flip(images, generator)
        return images
