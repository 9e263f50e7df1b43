"""The bundled benchmark: scikit-learn's 8×8 digits and photographs, and noise.

In-distribution are the digits 0, 1, 3, 4, 6, 7. Auxiliary outliers are the digits 2 and 5, patches of the photograph
`china.jpg`, and noise; test outliers are the digits 8 and 9 (near), patches of `flower.jpg`, and noise of other seeds.
No class, photograph or noise image is in both. It is real data, but tiny and easy: it shows that everything works, and
serves tests; a ranking of methods on it says little about natural images.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from certood.data.source import ImageSet

ID_DIGITS = (0, 1, 3, 4, 6, 7)
AUXILIARY_DIGITS = (2, 5)
NEAR_DIGITS = (8, 9)
SIDE = 8
PATCHES = 500
PATCH_SIDE = 64
AUXILIARY_SEED, TEST_SEED = 101, 202

DIGITS_SETS = ("digits-auxiliary", "digits-near", "digits-photo", "digits-uniform", "digits-smooth")


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All 1,797 digits: uint8 (N, 1, 8, 8), the set's values 0..16 scaled to 0..255, and int64 labels (N,)."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (scikit-learn takes a second to import)

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return torch.from_numpy(pixels)[:, None], torch.from_numpy(bunch.target.astype(np.int64))


def _digits_of(classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    images, targets = _digits()
    chosen = torch.isin(targets, torch.tensor(classes))
    labels = torch.searchsorted(torch.tensor(classes), targets[chosen])
    return images[chosen], labels


def _photo_patches(name: str, seed: int) -> Tensor:
    """Grey patches of 64×64 pixels of a scikit-learn photograph, reduced to 8×8: uint8 (500, 1, 8, 8)."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415

    photo = torch.tensor(np.asarray(load_sample_image(name)), dtype=torch.float32).mean(-1)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(photo.shape[0] - PATCH_SIDE, (PATCHES,), generator=generator).tolist()
    columns = torch.randint(photo.shape[1] - PATCH_SIDE, (PATCHES,), generator=generator).tolist()
    patches = torch.stack([photo[r : r + PATCH_SIDE, c : c + PATCH_SIDE] for r, c in zip(rows, columns, strict=True)])
    reduced = F.interpolate(patches[:, None], size=(SIDE, SIDE), mode="area")
    return reduced.round().to(torch.uint8)


def _uniform_noise(seed: int) -> Tensor:
    """Independent uniform pixels: uint8 (500, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (PATCHES, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def _smooth_noise(seed: int) -> Tensor:
    """Uniform noise of 3×3 pixels enlarged by bicubic interpolation: uint8 (500, 1, 8, 8)."""
    coarse = torch.rand(PATCHES, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)


def load_digits_id() -> ImageSet:
    """The six in-distribution digit classes, unsplit."""
    images, labels = _digits_of(ID_DIGITS)
    return ImageSet("digits", images, labels, tuple(str(digit) for digit in ID_DIGITS))


def load_digits_set(name: str) -> ImageSet:
    """One of the auxiliary or test outlier sets of the benchmark (see DIGITS_SETS)."""
    match name:
        case "digits-auxiliary":
            parts = [
                _digits_of(AUXILIARY_DIGITS)[0],
                _photo_patches("china.jpg", AUXILIARY_SEED),
                _uniform_noise(AUXILIARY_SEED),
                _smooth_noise(AUXILIARY_SEED),
            ]
            return ImageSet(name, torch.cat(parts))
        case "digits-near":
            return ImageSet(name, _digits_of(NEAR_DIGITS)[0])
        case "digits-photo":
            return ImageSet(name, _photo_patches("flower.jpg", TEST_SEED))
        case "digits-uniform":
            return ImageSet(name, _uniform_noise(TEST_SEED))
        case _:
            return ImageSet(name, _smooth_noise(TEST_SEED))
