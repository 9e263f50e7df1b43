"""What a library of attacks offers as a second opinion."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor


class AttackLibrary(ABC):
    """Attacks of another package, on decisions that a margin changes."""

    name: ClassVar[str]

    @abstractmethod
    def require(self) -> None:
        """Raise CertoodError, which names what to install, where the package is not installed."""

    @abstractmethod
    def points(
        self, margins: Callable[[Tensor], Tensor], images: Tensor, norm: float, random: Sequence[torch.Generator]
    ) -> Iterator[Tensor]:
        """Points (N, C, H, W) near the images, from each attack that the library has for balls of this norm.

        `margins` (N,) of points (N, C, H, W) are above 0 where the decision about an image has changed, and differentiable.
        `random` has one generator per image, the only source of chance, so that no image depends on the others of its batch.
        What is returned is not trusted: whoever asks evaluates every point.
        """
