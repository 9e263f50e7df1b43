"""What is in an image set, read whole: counts, range, duplicates, images shared with another set."""

import torch

from certood.data.hashing import image_digests
from certood.data.source import ImageSource


def shared_images(first: ImageSource, second: ImageSource) -> int:
    """How many images of the first set stand pixel for pixel in the second."""
    return len(set(image_digests(first)) & set(image_digests(second)))


def describe(source: ImageSource) -> str:
    """A few lines: number and shape, images per class, exact duplicates, fingerprint."""
    digests = image_digests(source)
    lines = [
        f"{source.name}: {len(source)} images of shape {'×'.join(map(str, source.shape))} (channels×height×width)",
        f"  exact duplicates: {len(digests) - len(set(digests))}",
        f"  sha256: {source.fingerprint}",
    ]
    if source.labels is not None:
        counts = torch.bincount(source.labels, minlength=len(source.classes)).tolist()
        shown = ", ".join(f"{name} {count}" for name, count in zip(source.classes[:12], counts, strict=False))
        more = f", and {len(counts) - 12} more classes" if len(counts) > 12 else ""
        lines.insert(1, f"  classes: {shown}{more}")
    return "\n".join(lines)
