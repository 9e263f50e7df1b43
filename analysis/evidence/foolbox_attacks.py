"""Attacks of foolbox (Rauber et al., JOSS 2020) on a decision, as a problem of two classes."""

import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from certood.analysis.evidence.attack_library import AttackLibrary
from certood.errors import CertoodError
from certood.optional import optional

# Fast minimum-norm attacks (Pintor et al., NeurIPS 2021, arXiv 2102.12827) take so many steps, the first of these lengths in l2.
STEPS = 100
LENGTH = {math.inf: (1.0,), 1: (1.0, 0.1)}


class FoolboxAttacks(AttackLibrary):
    """Per norm what proved nearest: FMN and DeepFool in l_inf, DDN in l2, FMN in l1.

    The l2 attack of FMN in foolbox 3.3.4 divides the norm of a step by itself, so that it projects nothing; DDN (Rony et al.,
    CVPR 2019, arXiv 1811.09600), from which FMN was made, takes its place.
    """

    name = "foolbox"

    def require(self) -> None:
        """Raise CertoodError where foolbox is not installed."""
        _library()

    def points(
        self, margins: Callable[[Tensor], Tensor], images: Tensor, norm: float, random: Sequence[torch.Generator]
    ) -> Iterator[Tensor]:
        """The points (N, C, H, W) of each attack in turn."""
        foolbox = _library()
        with torch.no_grad():
            scale = margins(images).abs().clamp_min(1e-300)
        classes = foolbox.PyTorchModel(_TwoClasses(margins, scale, random).eval(), bounds=(0, 1), device=images.device)
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        for attack in _attacks(foolbox, norm):
            # DDN draws from the generator of the whole process, though without effect: see `_TwoClasses`.
            with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
                yield attack.run(classes, images, foolbox.criteria.Misclassification(labels)).detach()


class _TwoClasses(nn.Module):
    """Logits (N, 2) of a decision: 0 for the one about the image, its margin for the other, in units of `scale` (N,).

    In those units no softmax of them saturates at the images. A gradient that vanishes is replaced by noise of the image's own
    generator, without which no attack moves on; DDN would draw it for all images of a batch together.
    """

    def __init__(self, margins: Callable[[Tensor], Tensor], scale: Tensor, random: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.margins, self.scale, self.random = margins, scale, random

    def forward(self, points: Tensor) -> Tensor:
        """The logits; every call is about all images."""
        if points.requires_grad:
            points.register_hook(self._moving)
        other = self.margins(points) / self.scale
        return torch.stack([torch.zeros_like(other), other], 1)

    def _moving(self, slopes: Tensor) -> Tensor:
        vanished = (slopes.flatten(1) == 0).all(1)
        if not vanished.any():
            return slopes
        moved = slopes.clone()
        for row in vanished.nonzero().flatten().tolist():
            noise = torch.randn(slopes.shape[1:], generator=self.random[row], dtype=slopes.dtype, device="cpu")
            moved[row] = noise.to(slopes.device)
        return moved


def _attacks(foolbox: ModuleType, norm: float) -> list[Any]:
    attacks = foolbox.attacks
    if norm == 2:
        return [attacks.DDNAttack(steps=STEPS)]
    fast = attacks.LInfFMNAttack if norm == math.inf else attacks.L1FMNAttack
    others = [attacks.LinfDeepFoolAttack()] if norm == math.inf else []
    return [*(fast(steps=STEPS, max_stepsize=length) for length in LENGTH[norm]), *others]


def _library() -> ModuleType:
    missing = CertoodError("the second attack foolbox needs foolbox: pip install 'certood[attacks]'")
    return optional("foolbox", missing)
