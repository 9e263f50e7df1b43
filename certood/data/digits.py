"""The bundled benchmark: scikit-learn's 8×8 digits and photographs, and noise.

In-distribution are the digits 0, 1, 3, 4, 6, 7. Auxiliary outliers are the digits 2 and 5, patches of the photograph
`china.jpg`, and noise; test outliers are the digits 8 and 9 (near), patches of `flower.jpg`, and noise of other seeds.
No class, photograph or noise image is in both. It is real data, but tiny and easy: it shows that everything works, and
serves tests; a ranking of methods on it says little about natural images.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from certood.data.request import Request
from certood.data.source import ImageSet

ID_DIGITS = (0, 1, 3, 4, 6, 7)
AUXILIARY_DIGITS = (2, 5)
NEAR_DIGITS = (8, 9)
SIDE = 8
PATCHES = 500
PATCH_SIDE = 64
AUXILIARY_SEED, TEST_SEED = 101, 202


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


def load_digits(request: Request) -> ImageSet:
    """One of DIGITS_SETS in the form asked for; they have no official splits."""
    images, labels, classes = DIGITS_SETS[request.source]()
    return ImageSet(request.name, request.form(images), labels, classes)


def _classes(digits: tuple[int, ...]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    return *_digits_of(digits), tuple(str(digit) for digit in digits)


def _auxiliary() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    digits, labels, names = _classes(AUXILIARY_DIGITS)
    others = [
        _photo_patches("china.jpg", AUXILIARY_SEED),
        _uniform_noise(AUXILIARY_SEED),
        _smooth_noise(AUXILIARY_SEED),
    ]
    more = torch.arange(len(names), len(names) + len(others)).repeat_interleave(PATCHES)
    return torch.cat([digits, *others]), torch.cat([labels, more]), (*names, "photo", "uniform", "smooth")


Loader = Callable[[], tuple[Tensor, Tensor | None, tuple[str, ...]]]

DIGITS_SETS: dict[str, Loader] = {
    "digits": lambda: _classes(ID_DIGITS),
    "digits-auxiliary": _auxiliary,
    "digits-near": lambda: _classes(NEAR_DIGITS),
    "digits-photo": lambda: (_photo_patches("flower.jpg", TEST_SEED), None, ()),
    "digits-uniform": lambda: (_uniform_noise(TEST_SEED), None, ()),
    "digits-smooth": lambda: (_smooth_noise(TEST_SEED), None, ()),
}
